"""An engine of ours under offline and online load, beside what its machine could do at most.

    python -m bench.engine [--model DIR] [--dtype bfloat16] [--offline 1 16] [--online 4] [--repeats 5]

One engine process serves all cases, which take turns within each repeat. Offline: requests wait, so many run
at once. Online: Poisson arrivals, with a mix of classes. Output has its full length, whatever ids come.
Without a model: the 60M Llama of bench/shapes.py. MBU and MFU are parts of ceilings measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.arithmetic import ModelSize
from bench.ceilings import Ceilings, measure_ceilings
from bench.drive import Engine, Ran, started
from bench.outcome import machine_of, outcome_of, rows_of
from bench.results_contract import Row, record, row
from bench.shapes import SHAPES, write_model
from bench.workload import Job, Lengths, Work, offline, online, parse_mix
from services.common.models import ModelDirectory
from services.worker.engine.base import EngineDescription
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import LatencyClass

_WARM_UP_SEED = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A load."""

    name: str
    concurrency: int | None  # None: by the jobs' times
    jobs: Callable[..., list[Job]]  # of a seed


def cases_of(given: argparse.Namespace, vocab: int) -> Iterator[Case]:
    """The cases that the options ask for."""
    work = Work(given.prompt, given.output, vocab, given.temperature)
    numbers = given.dtype if given.quantization == "none" else given.quantization
    shape = f"{numbers}, {_text(given.prompt)} in, {_text(given.output)} out"
    latency_class = LatencyClass[given.latency_class]
    for streams in given.offline:
        count = given.requests or streams
        waiting = partial(offline, work, count, latency_class=latency_class)
        yield Case(name=f"offline, {streams} streams, {shape}", concurrency=streams, jobs=waiting)
    for rate in given.online:
        arriving = partial(online, work, rate, given.seconds, mix=given.mix)
        yield Case(name=f"online, {rate:g}/s, {shape}", concurrency=None, jobs=arriving)


def _ceilings(engine: EngineDescription, threads: int | None) -> Ceilings | None:
    """None for an engine that computes nothing."""
    if engine.engine == "simulated":
        return None
    device = "cpu" if "thread" in engine.device else "cuda"
    return measure_ceilings(device, engine.dtype, threads)


async def measure(given: argparse.Namespace, settings: EngineSettings) -> list[Row]:
    """All cases, taking turns; the ceilings are the better of two measurements around them."""
    size = _size(settings)
    async with started(settings) as engine:
        description = engine.description
        cases = list(cases_of(given, description.vocab_size))
        await _warm_up(engine, cases)
        before = await asyncio.to_thread(_ceilings, description, given.threads)
        runs: dict[str, list[Ran]] = {case.name: [] for case in cases}
        for seed in range(given.seed, given.seed + given.repeats):
            for case in cases:
                runs[case.name].append(await engine.run(case.jobs(seed=seed), case.concurrency))
                print(f"seed {seed} {case.name}: {outcome_of(runs[case.name][-1], None)}", flush=True)
        after = await asyncio.to_thread(_ceilings, description, given.threads)
    machine = machine_of(description.dtype, given.dtype, size, before, after)
    rows = [] if machine is None else list(_ceiling_rows(description, before, after))
    for name, each in runs.items():
        rows.extend(rows_of(name, [outcome_of(ran, machine) for ran in each]))
    return rows


async def _warm_up(engine: Engine, cases: list[Case]) -> None:
    """Once through each case, so that the step model knows its steps and memory is touched."""
    for case in cases:
        await engine.run(case.jobs(seed=_WARM_UP_SEED), case.concurrency)


def _ceiling_rows(
    engine: EngineDescription, before: Ceilings | None, after: Ceilings | None
) -> Iterator[Row]:
    assert before is not None
    assert after is not None
    device, rates = engine.device, list(zip(before, after, strict=True))
    yield row(device, "streaming read", "GB/s", [rate / 1e9 for rate in rates[0]])
    yield row(device, f"{engine.dtype} product", "GFLOP/s", [rate / 1e9 for rate in rates[1]])


def _size(settings: EngineSettings) -> ModelSize | None:
    if settings.engine == "simulated":
        return None
    return ModelSize.of(ModelDirectory(settings.model, "model").config)


def _text(lengths: Lengths) -> str:
    return f"{lengths.least}" if lengths.least == lengths.most else f"{lengths.least}-{lengths.most}"


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description="An engine of ours under offline and online load.")
    options.add_argument("--model", type=Path, help="unset: the 60M Llama with random weights")
    options.add_argument("--engine", choices=["torch", "simulated"], default="torch")
    options.add_argument("--calibration", type=Path, help="of the simulated engine")
    options.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options.add_argument("--quantization", choices=["none", "int8"], default="none")
    options.add_argument("--threads", type=int)
    options.add_argument("--offline", type=int, nargs="*", default=[1, 16], help="streams at once")
    options.add_argument("--requests", type=int, help="of an offline run; unset: one a stream")
    options.add_argument("--online", type=float, nargs="*", default=[4.0], help="arrivals a second")
    options.add_argument("--seconds", type=float, default=10.0, help="of arrivals in an online run")
    options.add_argument("--mix", type=parse_mix, default=parse_mix("interactive=1"))
    options.add_argument("--class", dest="latency_class", type=str.upper, default="STANDARD")
    options.add_argument("--prompt", type=Lengths.parse, default=Lengths(128, 128))
    options.add_argument("--output", type=Lengths.parse, default=Lengths(64, 64))
    options.add_argument("--temperature", type=float, default=0.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--name", default="engine", help="of the file in bench/results")
    return options


def main() -> None:
    """Run all cases, print the table, write the result."""
    given = _options().parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = given.model or write_model(Path(directory) / "llama-60m", SHAPES["60m"])
        settings = EngineSettings(
            model=model,
            engine=given.engine,
            device=given.device,
            dtype=given.dtype,
            quantization=given.quantization,
            threads=given.threads,
            simulated_calibration=given.calibration,
        )
        record(given.name, asyncio.run(measure(given, settings)), packages=["torch", "numpy"])


if __name__ == "__main__":
    main()
