"""The production scheduler over a chat trace with a standing batch backlog, in virtual time.

    python -m bench.scheduler_trace [--trace azure_conv_2023.csv] [--speeds 1 2] [--seconds 300] [--seeds 3]
        [--name scheduler-trace]

One simulated worker (bench/calibration/h100-8b.toml, 5 % noise). Interactive requests come from the trace,
sped up, with targets of 1 s to the first token and 50 ms a token; 64 batch prompts of 4,000 to 8,000 tokens
and 200 to 400 of output always wait. A seed draws backlog and noise; cases of one seed are compared.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.fixed_chunk import FixedChunkPlanner
from bench.results_contract import Row, record, row
from bench.virtual import Story, VirtualWorker
from services.worker.engine.settings import EngineSettings
from services.worker.engine.simulated.clock import VirtualClock
from services.worker.engine.simulated.load import load_simulated_engine
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.planner import Planner
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.scheduler import Scheduler

HERE = Path(__file__).parent
EXCERPT = HERE / "data" / "azure_conv_2023_600s.csv"
CALIBRATION = HERE / "calibration" / "h100-8b.toml"
TTFT_S, TPOT_S = 1.0, 0.050
NOISE = 0.05
BACKLOG, BATCH = 64, b"batch"
RUN_OUT_S = 60.0  # after the measured time, for interactive requests to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A policy, and whether batch work waits."""

    name: str
    settings: SchedulerSettings
    fixed: bool = False
    backlog: bool = True
    run_ahead: int = 0


DEFAULT = SchedulerSettings()
_FIXED = SchedulerSettings(batch_kv_share=0.7, batch_kv_share_quiet=0.7)
ALONE, OURS, LARGEST = "interactive alone", "our policy", "priority, fixed 512"
CASES = (
    Case(name=ALONE, settings=DEFAULT, backlog=False),
    *(
        Case(name=f"priority, fixed {chunk}", settings=replace(_FIXED, max_chunk=chunk), fixed=True)
        for chunk in (512, 2048, 8192)
    ),
    Case(name=OURS, settings=DEFAULT),
    Case(name="interactive alone, one step ahead", settings=DEFAULT, backlog=False, run_ahead=1),
    Case(name="our policy, one step ahead", settings=DEFAULT, run_ahead=1),
)


class Outcome(NamedTuple):
    """Of one run."""

    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p99_ms: float
    slo: float  # % of interactive requests within both targets
    batch_tokens: float  # a second, prompts and outputs
    batch_outputs: float  # a second
    model_error: float  # % mean error of the step model


UNITS = {
    "ttft_p50_ms": "ms",
    "ttft_p99_ms": "ms",
    "tpot_p99_ms": "ms",
    "slo": "%",
    "batch_tokens": "tok/s",
    "batch_outputs": "tok/s",
    "model_error": "%",
}


class Arrival(NamedTuple):
    """A line of the trace."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def read_trace(path: Path) -> list[Arrival]:
    """A trace in the form of Azure's: TIMESTAMP,ContextTokens,GeneratedTokens."""
    with path.open() as file:
        lines = [tuple(line.values()) for line in csv.DictReader(file)]
    times = [datetime.fromisoformat(line[0][:26]).timestamp() for line in lines]
    return [
        Arrival(at_s - times[0], int(line[1]), int(line[2])) for at_s, line in zip(times, lines, strict=True)
    ]


def interactive(trace: list[Arrival], speed: float, seconds: float) -> Iterator[Request]:
    """The trace's requests within the first seconds, their times divided by `speed`."""
    for handle, each in enumerate(trace):
        if each.at_s / speed < seconds:
            yield _request(
                handle,
                each.at_s / speed,
                each.prompt_tokens,
                each.output_tokens,
                latency_class=LatencyClass.INTERACTIVE,
            )


def backlog(seed: int, first_handle: int) -> Iterator[Request]:
    """Batch requests without end."""
    draw = random.Random(seed)
    for handle in count(first_handle):
        yield _request(
            handle,
            0.0,
            draw.randint(4000, 8000),
            draw.randint(200, 400),
            latency_class=LatencyClass.BATCH,
        )


def _request(handle: int, at_s: float, prompt: int, output: int, *, latency_class: LatencyClass) -> Request:
    targets = (None, None) if latency_class is LatencyClass.BATCH else (TTFT_S, TPOT_S)
    return Request(
        handle=handle,
        prompt=np.full(max(1, prompt), 1 + handle % 1000, np.int32),
        max_tokens=max(1, output),
        arrival_s=at_s,
        sampling=Sampling(ignore_eos=True),
        latency_class=latency_class,
        ttft_target_s=targets[0],
        tpot_target_s=targets[1],
        tenant=BATCH if latency_class is LatencyClass.BATCH else b"chat",
    )


def worker_of(case: Case, seed: int) -> VirtualWorker:
    """A simulated worker that schedules as the case says."""
    clock = VirtualClock()
    settings = EngineSettings(
        model=HERE / "none", simulated_calibration=CALIBRATION, simulated_noise=NOISE, simulated_seed=seed
    )
    engine = load_simulated_engine(settings, clock)
    facts = ModelFacts(engine.description.vocab_size, engine.description.eos_ids, bytes(32))
    planner = FixedChunkPlanner if case.fixed else Planner
    scheduler = Scheduler(
        engine.runner.spec, case.settings, facts, engine.runner.capabilities, planner=planner
    )
    return VirtualWorker(scheduler, engine.runner, clock, case.run_ahead)


def run(case: Case, trace: list[Arrival], speed: float, seconds: float, seed: int) -> Outcome:
    """One case, one seed."""
    worker = worker_of(case, seed)
    wanted = list(interactive(trace, speed, seconds))
    more = backlog(seed, len(trace))
    worker.submit(wanted)
    worker.submit(next(more) for _ in range(BACKLOG * case.backlog))
    for finished in worker.run(seconds):
        if finished.handle >= len(trace):
            worker.submit([replace(next(more), arrival_s=worker.now_s)])
    batch = list(worker.served.get(BATCH, (0, 0)))
    for _ in worker.run(seconds + RUN_OUT_S):
        pass
    chat = [worker.stories[each.handle] for each in wanted if each.handle in worker.stories]
    error = worker.scheduler.model.state().error
    return _outcome(chat, len(wanted), batch, seconds, error)


def _outcome(chat: list[Story], wanted: int, batch: list[int], seconds: float, error: float) -> Outcome:
    ttft = [each.first_s - each.request.arrival_s for each in chat if each.first_s is not None]
    tpot = [_tpot_s(each) for each in chat if len(each.token_ids) > 1]
    within = sum(
        each.finished is not None
        and (each.first_s or 0.0) - each.request.arrival_s <= TTFT_S
        and _tpot_s(each) <= TPOT_S
        for each in chat
    )
    return Outcome(
        ttft_p50_ms=1e3 * float(np.percentile(ttft, 50)),
        ttft_p99_ms=1e3 * float(np.percentile(ttft, 99)),
        tpot_p99_ms=1e3 * float(np.percentile(tpot, 99)),
        slo=100.0 * within / wanted,
        batch_tokens=sum(batch) / seconds,
        batch_outputs=batch[1] / seconds,
        model_error=100.0 * error,
    )


def _tpot_s(story: Story) -> float:
    assert story.first_s is not None
    assert story.last_s is not None
    return (story.last_s - story.first_s) / max(1, len(story.token_ids) - 1)


def rows_of(outcomes: dict[str, list[Outcome]], speed: float) -> Iterator[Row]:
    """The table's rows at one speed, with the aims."""
    for name, runs in outcomes.items():
        for metric in Outcome._fields:
            samples = [float(getattr(each, metric)) for each in runs]
            yield row(f"{speed:g}x, {name}", metric, UNITS[metric], samples)
    alone, fixed, ours = (outcomes[name] for name in (ALONE, LARGEST, OURS))
    ttft = [mine.ttft_p99_ms / his.ttft_p99_ms for mine, his in zip(ours, alone, strict=True)]
    work = [mine.batch_tokens / his.batch_tokens for mine, his in zip(ours, fixed, strict=True)]
    slo = [each.slo for each in ours]
    case = f"{speed:g}x, {OURS}"
    yield row(case, "ttft_p99 / alone", "×", ttft, aim="<= 1.25", met=statistics.median(ttft) <= 1.25)
    yield row(case, "slo of all", "%", slo, aim="100", met=min(slo) == 100.0)
    yield row(case, "batch_tokens / fixed 512", "×", work, aim=">= 0.9", met=statistics.median(work) >= 0.9)


def told(outcome: Outcome) -> str:
    """In a line, with units."""
    values = outcome._asdict().items()
    return ", ".join(f"{name} {value:,.1f} {UNITS[name]}" for name, value in values)


def main() -> None:
    """Run all cases, print the table, write the result."""
    options = argparse.ArgumentParser(description="Scheduler against fixed chunks over a chat trace.")
    options.add_argument("--trace", type=Path, default=EXCERPT)
    options.add_argument("--speeds", type=float, nargs="+", default=[1.0, 2.0])
    options.add_argument("--seconds", type=float, default=300.0)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--name", default="scheduler-trace", help="of the file in bench/results")
    given = options.parse_args()
    trace = read_trace(given.trace)
    rows: list[Row] = []
    for speed in given.speeds:
        outcomes: dict[str, list[Outcome]] = {case.name: [] for case in CASES}
        for seed in range(given.seeds):
            for case in CASES:
                outcomes[case.name].append(run(case, trace, speed, given.seconds, seed))
                print(f"{speed:g}x seed {seed} {case.name}: {told(outcomes[case.name][-1])}", flush=True)
        rows.extend(rows_of(outcomes, speed))
    record(given.name, rows, packages=["numpy"])


if __name__ == "__main__":
    main()
