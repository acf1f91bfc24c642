"""At which output index seeded requests first differ from themselves: python -m bench.divergence.

    python -m bench.divergence [--models 60m default] [--dtype bfloat16] [--requests 96] [--tokens 64]

Randomness does not depend on neighbours, rounding may: a product over more rows may add up in another order.
Each request runs alone, then with 1, 3, 17 and 64 others beside it at any time, prompts in the steps of
decodes: 16 to 96 tokens of prompt, temperature 1, a seed each. With 0 neighbours it runs alone again: the
control. Then each is resumed, as after the loss of its worker: the prompt and the first 1, 8 and 32 tokens of
its output are computed in one piece, alone and with 16 others beside it, and it goes on. In float32 all must
be equal, which tests hold; elsewhere another, equally valid token may come. No length may ever differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import uvloop
from rich.console import Console

from bench.drive import Engine, started
from bench.results_contract import RESULTS, Row, record, row
from bench.shapes import SHAPES, write_model
from bench.workload import Job, Lengths, Work, offline
from services.common.models import progress_to, resolve
from services.worker.engine.report import StepReport
from services.worker.engine.settings import Dtype, EngineSettings
from services.worker.scheduler.policy import SchedulerSettings

NEIGHBOURS = (0, 1, 3, 17, 64)
RESUMED_AFTER = (1, 8, 32)  # tokens of output
RESUMED_BESIDE = (0, 16)  # neighbours, resumed as well
BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)  # borders of the histogram
PROMPT = Lengths(16, 96)
ONE_PIECE = SchedulerSettings(max_chunk=256, idle_step_s=10.0)  # a prompt alone is not cut by the clock
BAR = 40  # characters of a whole histogram
Answers = list[list[int]]  # ids, by job
Differences = dict[str, list[int | None]]


async def answers(engine: Engine, jobs: list[Job], concurrency: int) -> Answers:
    """What all jobs give, so many at a time."""
    ids: dict[int, list[int]] = {}

    def note(report: StepReport) -> None:
        for handle, _, token in report.outputs.plain():
            ids.setdefault(handle, []).append(token)

    await engine.run(jobs, concurrency, note)
    return [ids[handle] for handle in sorted(ids)]  # handles rise in the order of the jobs


def first_difference(one: list[int], other: list[int]) -> int | None:
    """The first output index at which they differ; None: nowhere."""
    assert len(one) == len(other), "requests run to their length"
    return next(
        (index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None
    )


async def differences(settings: EngineSettings, requests: int, tokens: int, seed: int) -> Differences:
    """First differences of all requests, by what was done to them."""
    async with started(settings) as engine:
        work = Work(PROMPT, Lengths(tokens, tokens), engine.description.vocab_size, temperature=1.0)
        jobs = offline(work, requests, seed)
        alone = await answers(engine, jobs, 1)
        found: Differences = {}
        for neighbours in NEIGHBOURS:
            crowd = await answers(engine, jobs, neighbours + 1)
            found[f"{neighbours} neighbours"] = list(map(first_difference, alone, crowd))
        for after, beside in product((each for each in RESUMED_AFTER if each < tokens), RESUMED_BESIDE):
            case = f"resumed after {after}, {beside} neighbours"
            found[case] = await resumed(engine, jobs, alone, after, beside)
        for case, indices in found.items():
            print(f"{settings.model.name}, seed {seed}, {case}: {indices}", flush=True)
        return found


async def resumed(
    engine: Engine, jobs: list[Job], alone: Answers, after: int, beside: int
) -> list[int | None]:
    """First differences when all go on after so many tokens of their own output."""
    halves = [
        job._replace(delivered=np.array(ids[:after], np.int32)) for job, ids in zip(jobs, alone, strict=True)
    ]
    rests = await answers(engine, halves, beside + 1)
    return [
        None if (index := first_difference(ids[after:], rest)) is None else after + index
        for ids, rest in zip(alone, rests, strict=True)
    ]


def rows_of(case: str, runs: list[list[int | None]], tokens: int) -> Iterator[Row]:
    """Parts of all requests: equal, or first different in each bucket."""
    yield row(case, "equal", "%", [100.0 * found.count(None) / len(found) for found in runs])
    for low, high in buckets(tokens):
        parts = [100.0 * sum(low <= each < high for each in known(found)) / len(found) for found in runs]
        yield row(case, f"first different at {label(low, high)}", "%", parts)


def label(low: int, high: int) -> str:
    return str(low) if high == low + 1 else f"{low}-{high - 1}"


def known(found: list[int | None]) -> list[int]:
    return [each for each in found if each is not None]


def buckets(tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of output indices, the last one to the end."""
    borders = [border for border in BUCKETS if border < tokens] + [tokens]
    return pairwise(borders)


def show(case: str, rows: list[Row], console: Console) -> None:
    """A histogram for people."""
    console.print(f"\n{case}")
    for each in rows:
        console.print(f"  {each.metric:>26} {each.value:5.1f} % {'█' * round(each.value * BAR / 100)}")


def model_of(name: str, directory: Path) -> Path:
    """A random model of a shape of bench/shapes.py, or one that the store resolves."""
    if name in SHAPES:
        return write_model(directory / name, SHAPES[name])
    return resolve(name, progress=progress_to(sys.stderr)).path


def measure(name: str, dtype: Dtype, requests: int, tokens: int, seeds: int) -> list[Row]:
    """All rows of one model, printed as histograms."""
    with tempfile.TemporaryDirectory() as directory:
        settings = EngineSettings(
            model=model_of(name, Path(directory)), dtype=dtype, max_context=1024, scheduler=ONE_PIECE
        )
        runs = [uvloop.run(differences(settings, requests, tokens, seed)) for seed in range(seeds)]
    rows = []
    for done in runs[0]:
        case = f"{name} {dtype}, {done}"
        rows += (part := list(rows_of(case, [run[done] for run in runs], tokens)))
        show(case, part, Console())
    return rows


def main() -> None:
    """Measure all models, print histograms and table, write the result."""
    options = argparse.ArgumentParser(description="First differences of seeded requests among neighbours.")
    options.add_argument("--models", nargs="+", default=["60m", "default"], help="shapes, or models")
    options.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options.add_argument("--requests", type=int, default=96)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    given = options.parse_args()
    rows = [
        each
        for name in given.models
        for each in measure(name, given.dtype, given.requests, given.tokens, given.seeds)
    ]
    record("divergence", rows, ["torch", "numpy"], given.results)


if __name__ == "__main__":
    main()
