"""A real run of a mesh under a Poisson load, kept as a file: what came when, and what became of it.

    python -m bench.live.run FILE [--seconds 600] [--load 0.6] [--workers 2]

CPU workers with SmolLM2, one thread each. `python -m bench.live.fidelity FILE` replays the file in the
simulator and compares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import uvloop
from headrace.client import channel
from headrace.v1.router_pb2_grpc import RouterServiceStub

from bench.live.mesh import LiveMesh, WorkerKind, live_mesh
from services.cli.bench.arrivals import poisson
from services.cli.bench.call import Caller, clock
from services.cli.bench.drive import closed_loop, open_loop
from services.cli.bench.mix import Mix
from services.cli.bench.prompts import Lengths, Synthetic
from services.cli.bench.record import Record
from services.cli.bench.workload import Job, jobs
from services.common.models import resolve

SLOTS = 16  # of each worker
PROMPT, OUTPUT = Lengths(32, 384), Lengths(16, 96)
VOCAB = 49_152
CAPACITY_S = 40.0  # of the closed loop that finds what the mesh can take; its second half counts
TIMEOUT_S = 300.0
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Seconds from the start of the run, and from its arrival."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float


@dataclass(frozen=True)
class LiveRun:
    """A run, and what its workers thought of their steps meanwhile."""

    calls: list[Call]
    workers: list[dict[str, float]]  # seconds by term of the step model, means over the run
    slots: int
    blocks: int
    capacity_rps: float

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises OSError, ValueError, TypeError for what is no such file."""
        fields = json.loads(path.read_text())
        return cls(**(fields | {"calls": [Call(**each) for each in fields["calls"]]}))


async def live_run(seconds: float, load: float, workers: int, blocks: int, seed: int) -> LiveRun:
    """Starts a mesh, finds what it can take, and sends a part of that."""
    cores = sorted(os.sched_getaffinity(0))
    settings = {"max_seqs": str(SLOTS), "kv_blocks": str(blocks)}
    kinds = [
        WorkerKind(name="CPU", settings=settings, cores=str(cores[number % len(cores)]))
        for number in range(workers)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        async with live_mesh(resolve().path, kinds, Path(scratch)) as mesh:
            os.sched_setaffinity(0, {cores[-1]})
            async with channel(mesh.address, None) as connection:
                caller = Caller([RouterServiceStub(connection)], unary=False, timeout_s=TIMEOUT_S)
                return await _measure(mesh, caller, seconds, load, blocks, seed)


async def _measure(
    mesh: LiveMesh, caller: Caller, seconds: float, load: float, blocks: int, seed: int
) -> LiveRun:
    capacity_rps = await _capacity(mesh, caller, seed)
    print(f"capacity {capacity_rps:.2f} requests/s, sent {load * capacity_rps:.2f}/s", flush=True)
    records: list[Record] = []
    start_s = clock()
    times = poisson(load * capacity_rps, seed)
    models: list[list[dict[str, float]]] = []
    looking = asyncio.create_task(_look(mesh, models))
    try:
        await open_loop(_jobs(seed + 1), caller, records.append, times, start_s + seconds)
    finally:
        looking.cancel()
    calls = [_call(each, start_s) for each in sorted(records, key=lambda each: each.intended_s) if each.ok]
    if len(calls) < len(records):
        print(f"{len(records) - len(calls)} of {len(records)} requests failed", flush=True)
    return LiveRun(calls, [_mean(each) for each in zip(*models, strict=True)], SLOTS, blocks, capacity_rps)


async def _look(mesh: LiveMesh, models: list[list[dict[str, float]]]) -> None:
    """Keeps all workers' step models, again and again: a shared machine's pace changes by the second."""
    while True:
        models.append(await mesh.step_models())
        await asyncio.sleep(LOOK_S)


def _mean(models: Sequence[dict[str, float]]) -> dict[str, float]:
    return {term: statistics.fmean(each[term] for each in models) for term in models[0]}


async def _capacity(mesh: LiveMesh, caller: Caller, seed: int) -> float:
    records: list[Record] = []
    until_s = clock() + CAPACITY_S
    await closed_loop(_jobs(seed), caller, records.append, SLOTS * len(mesh.workers), until_s)
    ended = [each.end_s for each in records if each.ok and until_s - CAPACITY_S / 2 <= each.end_s < until_s]
    return len(ended) / (CAPACITY_S / 2)


def _jobs(seed: int) -> Iterator[Job]:
    return jobs(Synthetic(PROMPT, OUTPUT, VOCAB, seed), Mix({"interactive": 1.0}, seed), None)


def _call(record: Record, start_s: float) -> Call:
    assert record.ttft_s is not None
    return Call(
        record.intended_s - start_s, record.prompt_tokens, record.output_tokens, record.ttft_s, record.e2e_s
    )


def main() -> None:
    """Run, and write the file."""
    options = argparse.ArgumentParser(description="A real run, kept for a replay.")
    options.add_argument("file", type=Path)
    options.add_argument("--seconds", type=float, default=600.0)
    options.add_argument("--load", type=float, default=0.6, help="of what the mesh can take")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--blocks", type=int, default=512, help="KV blocks of each worker")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(live_run(given.seconds, given.load, given.workers, given.blocks, given.seed))
    found.write(given.file)
    print(f"{len(found.calls)} requests in {given.file}")


if __name__ == "__main__":
    main()
