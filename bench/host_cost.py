"""CPU time that the engine's process takes for a step beside the model: python -m bench.host_cost.

Production's loop, scheduler, outbox and pipe run in their own process around a runner that computes nothing
(bench/null_runner.py), one step ahead as on a GPU. As many requests as it has slots always run, others wait:
64 to 192 tokens of prompt, half of them with a beginning that is reused, 32 to 96 of output, penalties, five
log-probabilities a token; KV memory is small enough that blocks are evicted. What ends is replaced.

    cpu_ms       user and system time of the engine's process, all threads, a step; the aims are for this
    reader_ms    the same of this process: EngineClient, reading the outputs, submitting what comes next
    --breakdown  where it goes, by method, from a run of its own whose total is not recorded
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

from bench.null_runner import VOCAB, load_null, load_timed
from bench.results_contract import RESULTS, Row, record, row
from services.worker.engine.client import EngineClient
from services.worker.engine.load import EngineLoader
from services.worker.engine.report import StepReport
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.step import KVSpec

BLOCK_TOKENS = 64
BLOCKS_A_SEQUENCE = 6  # of 3 that it needs on average: the rest is cached, and evicted in turn
SHARED = 4  # beginnings of a block that half of the prompts have
LOGPROBS = 5
WARM_STEPS = 300
FULL = 0.95  # part of the slots that must have been in use on average: else the aim counts as missed
LIMIT_S = 120.0  # of one measurement
NO_MODEL = Path("none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How many sequences run, and what a step of them may cost."""

    sequences: int
    aim_ms: float | None = None

    @property
    def spec(self) -> KVSpec:
        blocks = BLOCKS_A_SEQUENCE * max(4, self.sequences)
        return KVSpec(block_size=BLOCK_TOKENS, num_blocks=blocks, max_seqs=self.sequences, max_len=1024)

    @property
    def name(self) -> str:
        return f"{self.sequences} sequences"


CASES = (
    Case(sequences=1),
    Case(sequences=16),
    Case(sequences=64, aim_ms=0.4),
    Case(sequences=256, aim_ms=1.0),
)


class Sample(NamedTuple):
    """One measurement, a step."""

    cpu_ms: float  # of the engine's process
    reader_ms: float  # of this process
    batch: float  # sequences


def requests(seed: int) -> Iterator[Request]:
    """Without end, of mixed lengths."""
    random = np.random.default_rng(seed)
    shared = random.integers(3, VOCAB, (SHARED, BLOCK_TOKENS), np.int32)
    sampling = Sampling(
        temperature=0.8,
        top_p=0.95,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        seed=seed,
        logprobs=LOGPROBS,
    )
    for handle in count(1):
        prompt = random.integers(3, VOCAB, random.integers(64, 193), np.int32)
        if handle % 2:
            prompt[:BLOCK_TOKENS] = shared[handle // 2 % SHARED]
        yield Request(
            handle=handle,
            prompt=prompt,
            max_tokens=int(random.integers(32, 97)),
            arrival_s=time.monotonic(),
            sampling=sampling,
            latency_class=LatencyClass.INTERACTIVE,
            kv_key=b"k" * 32,
            tenant=b"tenant-%d" % (handle % 8),
        )


class Reader:
    """Takes what the engine reports and replaces what ended, as a session's desk does."""

    def __init__(self, engine: EngineClient, case: Case, seed: int) -> None:
        self._engine = engine
        self._more = requests(seed)
        self._tokens = 0
        self.batches = 0
        for _ in range(2 * case.sequences + 1):  # enough wait for this process to be held up a while
            engine.submit(next(self._more))

    def take(self, report: StepReport) -> None:
        self.batches += report.progress.batch_size
        for news in report.outputs:
            self._tokens += 1
            assert news.logprobs is not None
        assert not report.terminals.rejected, report.terminals.rejected
        for _ in report.terminals.finished:
            self._engine.submit(next(self._more))


async def measure(case: Case, steps: int, seed: int, loader: EngineLoader) -> Sample:
    """One engine from its start to its end; its first steps are not counted."""
    engine = await EngineClient.start(EngineSettings(model=NO_MODEL), loader=loader)
    try:
        reader = Reader(engine, case, seed)
        clock = engine_clock()
        first = last = own_s = cpu_s = 0.0
        limit_s = time.monotonic() + LIMIT_S
        async for report in engine.reports():
            reader.take(report)
            last = report.progress.finished_steps
            if not first and last >= WARM_STEPS:
                first, own_s, cpu_s, reader.batches = last, time.process_time(), time.clock_gettime(clock), 0
            if time.monotonic() > limit_s or (first and last >= first + steps):
                break
        done = last - first
        assert first, "the engine was too slow to be measured"
        cpu_ms, own_ms = 1e3 * (time.clock_gettime(clock) - cpu_s), 1e3 * (time.process_time() - own_s)
        return Sample(cpu_ms / done, own_ms / done, reader.batches / done)
    finally:
        await engine.close()


def engine_clock() -> int:
    """The CPU clock of the only child: all its threads, user and system (clock_getcpuclockid of Linux)."""
    (child,) = multiprocessing.active_children()
    assert child.pid is not None
    return (~child.pid << 3) | 2


def breakdown(case: Case, steps: int) -> Iterator[Row]:
    """Milliseconds a step by part."""
    with tempfile.TemporaryDirectory() as directory:
        notes = Path(directory) / "parts.json"
        loader = partial(load_timed, notes, case.spec, LOGPROBS)
        uvloop.run(measure(case, steps, 0, loader))
        told = json.loads(notes.read_text())
    for part, spent_ms in told["parts"].items():
        yield row(f"{case.name}, timed by method", part, "ms/step", [spent_ms / told["steps"]])


def rows_of(case: Case, samples: list[Sample]) -> Iterator[Row]:
    """The case's rows, with its aim."""
    cpu_ms = [sample.cpu_ms for sample in samples]
    aim = None if case.aim_ms is None else f"<= {case.aim_ms:g}"
    full = min(sample.batch for sample in samples) >= FULL * case.sequences
    met = None if case.aim_ms is None else full and statistics.median(cpu_ms) <= case.aim_ms
    yield row(case.name, "cpu_ms", "ms/step", cpu_ms, aim=aim, met=met)
    yield row(case.name, "reader_ms", "ms/step", [sample.reader_ms for sample in samples])
    yield row(case.name, "batch", "sequences", [sample.batch for sample in samples])


def main() -> None:
    """Measure all cases in turn, repeatedly; print the table, write the result."""
    options = argparse.ArgumentParser(description="The host's CPU time a step around a null forward pass.")
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--sequences", type=int, nargs="+", default=[case.sequences for case in CASES])
    options.add_argument("--breakdown", action="store_true")
    options.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    given = options.parse_args()
    cases = [case for case in CASES if case.sequences in given.sequences]
    samples: dict[Case, list[Sample]] = {case: [] for case in cases}
    for seed in range(given.repeats):
        for case in cases:
            loader = partial(load_null, case.spec, LOGPROBS)
            samples[case].append(uvloop.run(measure(case, given.steps, seed, loader)))
            print(f"{case.name}, repeat {seed + 1}: {samples[case][-1]}", flush=True)
    rows = [each for case in cases for each in rows_of(case, samples[case])]
    if given.breakdown:
        rows += [each for case in cases for each in breakdown(case, given.steps)]
    record("host-cost", rows, ["numpy"], given.results)


if __name__ == "__main__":
    main()
