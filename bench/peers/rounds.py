"""Runs a case: starts its peers, warms each up, then repeats with the peers in turn."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from bench.peers.adapters.loop import Config, Job
from bench.peers.cases import OUTPUT_TOKENS, Case, Entry, rotated
from bench.peers.environments import installed, python_of
from bench.peers.figures import Runs
from bench.peers.models import directory, prepared, prompts
from bench.peers.outcome import ALIKE, Outcome, agreement, disagrees, faults
from bench.peers.process import PeerFailed, PeerProcess, adapter_command
from bench.peers.text import unreadable
from bench.quiet import wait_for_quiet

Say = Callable[[str], None]


@dataclass
class House:
    """Processes that are up, by entry: cases in a row that share an entry share its process."""

    folder: Path
    scratch: Path
    say: Say
    failures: list[str] = field(default_factory=list)
    processes: dict[tuple[str, Entry], PeerProcess] = field(default_factory=dict)

    def keep(self, wanted: set[tuple[str, Entry]]) -> None:
        """Ends all others, so that nothing idle takes time from what is measured."""
        for key in [key for key in self.processes if key not in wanted]:
            self.processes.pop(key).close()

    def fail(self, case: Case, entry: Entry, error: object) -> None:
        """Notes it, and ends the process: what hangs must not take the cores of the rest."""
        self.failures.append(f"{case.title}: {entry.peer.name}: {error}")
        self.say(f"  {entry.peer.name}: FAILED: {error}")
        if process := self.processes.pop((case.model, entry), None):
            process.close()

    def start(self, case: Case, entry: Entry) -> PeerProcess:
        """The process of an entry. Raises PeerFailed."""
        key = (case.model, entry)
        if key not in self.processes:
            self.processes[key] = self._start(case, entry)
        return self.processes[key]

    def _start(self, case: Case, entry: Entry) -> PeerProcess:
        peer = entry.peer
        if peer.environment and not installed(peer.environment, self.folder):
            raise PeerFailed(f"not installed: python -m bench.peers install {peer.environment}")
        where = prepared(peer, case.model, self.folder)
        scratch = self.scratch / f"{case.model}-{peer.adapter}-{entry.dtype}"
        scratch.mkdir(exist_ok=True)
        config = Config(
            model=where.model,
            converted=where.converted,
            threads=entry.threads,
            cores=cores(entry.threads),
            dtype=entry.dtype,
            scratch=str(scratch),
        )
        command = adapter_command(python_of(peer, self.folder), peer.adapter)
        return PeerProcess(command, config, scratch / "log")


@contextmanager
def house(folder: Path, scratch: Path, say: Say) -> Iterator[House]:
    """A house that is empty at the end."""
    opened = House(folder, scratch, say)
    try:
        yield opened
    finally:
        opened.keep(set())


def cores(threads: int) -> list[int]:
    """The last cores that this process may use: the first ones serve most interrupts."""
    return sorted(os.sched_getaffinity(0))[-threads:]


def run_case(case: Case, repeats: int, home: House) -> dict[str, Runs]:
    """All repeats of a case; what fails is noted in the house and left out from then on."""
    home.say(f"{case.title}: starting")
    work = _Work.of(case, home.folder)
    home.keep({(case.model, entry) for entry in case.entries})
    runs: dict[str, Runs] = {}
    for entry in case.entries:
        with _noted(home, case, entry):
            process = home.start(case, entry)
            process.run(work.warm_up)
            runs[entry.peer.name] = Runs(entry.peer.title(process.versions[entry.peer.package]))
    for repeat in range(repeats):
        for entry in rotated(case.entries, repeat):
            if (case.model, entry) in home.processes:
                with _noted(home, case, entry):
                    _measure(case, entry, home, work, runs[entry.peer.name], repeat)
    found = {name: each for name, each in runs.items() if each.outcomes}
    for stranger in list(_strangers(case, found, home)):
        del found[stranger]
    return found


def _strangers(case: Case, runs: Mapping[str, Runs], home: House) -> Iterator[str]:
    """Peers that do not continue prompts as the reference does, though the weights are the same."""
    for name, alike in agreements(case, runs):
        home.say(f"  {name} begins like {case.reference} in {alike:.0%} of its ids")
        if case.real and alike < ALIKE:
            home.failures.append(f"{case.title}: {name}: its ids are not those of {case.reference}")
            yield name


def _measure(case: Case, entry: Entry, home: House, work: _Work, runs: Runs, repeat: int) -> None:
    if not wait_for_quiet():
        home.say("  the others do not rest")
    outcome = home.processes[case.model, entry].run(work.job)
    if wrong := list(work.faults(outcome, next(iter(runs.outcomes.values()), None))):
        raise PeerFailed(f"implausible: {'; '.join(wrong)}")
    runs.outcomes[repeat] = outcome
    load = os.getloadavg()[0]
    home.say(
        f"  {repeat + 1}: {entry.peer.name}: {outcome.tokens_per_s:.1f} tok/s, "
        f"{outcome.tokens_per_cpu_s:.1f} tok/core-s (load {load:.1f})"
    )


@dataclass(frozen=True)
class _Work:
    """The jobs of a case, and what its answers are held to."""

    job: Job
    warm_up: Job
    vocab: int
    tokenizer: Tokenizer | None  # where weights are real

    @classmethod
    def of(cls, case: Case, folder: Path) -> _Work:
        model = directory(case.model, folder)
        given = prompts(case.model, case.prompts, folder)
        tokenizer = Tokenizer.from_file(str(model.tokenizer_path)) if case.real else None
        return cls(
            Job(case.streams, given, OUTPUT_TOKENS),
            Job(case.streams, given[: case.streams], OUTPUT_TOKENS),
            model.vocab_size,
            tokenizer,
        )

    def faults(self, outcome: Outcome, earlier: Outcome | None) -> Iterator[str]:
        """What is wrong with an outcome."""
        found = list(faults(outcome, len(self.job.prompts), OUTPUT_TOKENS, self.vocab))
        yield from found
        if found:
            return
        if earlier is not None and (difference := disagrees(outcome, earlier)):
            yield difference
        if self.tokenizer is not None:
            yield from unreadable([self.tokenizer.decode(output) for output in outcome.outputs])


@contextmanager
def _noted(home: House, case: Case, entry: Entry) -> Iterator[None]:
    try:
        yield
    except (PeerFailed, OSError) as error:
        home.fail(case, entry, error)


def agreements(case: Case, runs: Mapping[str, Runs]) -> Iterator[tuple[str, float]]:
    """How alike a peer's ids begin to those of the case's reference, the peer's name first."""
    first = {name: next(iter(each.outcomes.values())) for name, each in runs.items()}
    if case.reference in first:
        for name in first.keys() - {case.reference}:
            yield name, agreement(first[name], first[case.reference])


def to_stderr(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)
