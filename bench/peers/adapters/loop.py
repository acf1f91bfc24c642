"""What all adapters share: read jobs, answer, measure. Standard library only, as all environments run it.

The driver starts `python -m bench.peers.adapters.NAME` and writes one JSON line a job to its standard input:
first the configuration, answered by `{"ready": …}`, then `{"streams", "prompts", "output_tokens"}`, answered
by what `measure` returns. What the peer itself prints goes to standard error. The end of the input ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TextIO

clock = time.perf_counter


@dataclass(frozen=True, kw_only=True)
class Config:
    """What an adapter starts with."""

    model: str  # directory, or file
    threads: int
    cores: list[int]  # the process is bound to these already
    dtype: str = ""
    scratch: str = ""  # a directory of its own
    converted: str = ""  # where what was converted for this peer lies
    streams: int = 16  # most at once


class Job(NamedTuple):
    """Prompts of ids, each continued greedily by exactly so many tokens, so many at once."""

    streams: int
    prompts: list[list[int]]
    output_tokens: int

    @property
    def batches(self) -> list[list[list[int]]]:
        """For peers without continuous batching."""
        return [self.prompts[at : at + self.streams] for at in range(0, len(self.prompts), self.streams)]


@dataclass
class Answer:
    """One prompt's output, timed as it comes."""

    sent_s: float = field(default_factory=clock)
    ids: list[int] = field(default_factory=list)
    first_s: float | None = None
    first_tokens: int = 0
    last_s: float = 0.0

    def arrived(self, ids: Sequence[int]) -> None:
        """More ids came; none are ignored."""
        if not ids:
            return
        self.last_s = clock()
        if self.first_s is None:
            self.first_s, self.first_tokens = self.last_s, len(ids)
        self.ids += map(int, ids)

    @property
    def ttft_s(self) -> float | None:
        """None for an answer that came as a whole."""
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """None for an answer that came as a whole."""
        rest = len(self.ids) - self.first_tokens
        return None if self.first_s is None or rest <= 0 else (self.last_s - self.first_s) / rest


def whole(ids: Sequence[int]) -> Answer:
    """An answer without times of its own."""
    return Answer(ids=[int(each) for each in ids])


Run = Callable[[Job], list[Answer]]
Start = Callable[[Config], AbstractContextManager[Run]]


def serve(start: Start, packages: Sequence[str]) -> None:
    """Answers jobs until the input ends; `packages` are those whose versions the driver shall know."""
    replies = _take_stdout()
    lines = iter(sys.stdin.readline, "")
    config = Config(**json.loads(next(lines)))
    with start(config) as run:
        versions = {package: version(package) for package in packages}
        _reply(replies, {"ready": True, "versions": versions})
        for line in lines:
            _reply(replies, measure(run, Job(**json.loads(line))))


def measure(run: Run, job: Job) -> dict[str, Any]:
    """Runs a job; wall time, CPU time of this process and all below it, and the answers."""
    cpu_s, began_s = tree_cpu_s(os.getpid()), clock()
    answers = run(job)
    wall_s = clock() - began_s
    return {
        "wall_s": wall_s,
        "cpu_s": tree_cpu_s(os.getpid()) - cpu_s,
        "outputs": [answer.ids for answer in answers],
        "ttft_s": [answer.ttft_s for answer in answers if answer.ttft_s is not None],
        "tpot_s": [answer.tpot_s for answer in answers if answer.tpot_s is not None],
    }


def tree_cpu_s(root: int) -> float:
    """User and system time of a process and all its descendants, those that ended included."""
    stats = {stat.pid: stat for stat in map(_stat, Path("/proc").glob("[0-9]*")) if stat is not None}
    return sum(stat.cpu_s for stat in stats.values() if _descends(stat.pid, root, stats))


class _Stat(NamedTuple):
    pid: int
    parent: int
    cpu_s: float  # its own, and of its children that ended


def _stat(process: Path) -> _Stat | None:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None  # it has just ended
    ticks = sum(map(int, fields[11:15]))
    return _Stat(int(process.name), int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"))


def _descends(pid: int, root: int, stats: dict[int, _Stat]) -> bool:
    while pid != root and pid in stats:
        pid = stats[pid].parent
    return pid == root


def _take_stdout() -> TextIO:
    """The driver's pipe, for replies alone: a print of the peer must not end up among them."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, content: dict[str, Any]) -> None:
    replies.write(json.dumps(content) + "\n")
    replies.flush()
