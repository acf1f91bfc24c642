"""What serving does to an engine's steps of 4 ms of sleep and 1 ms of Python, with 256 sequences.

Alone: driven by this process, nothing else runs. Session: worker and router as they are, to clients that
take 16 tokens a message; the worker shares the engine's core, or has the router's. One stream a request:
the same engine, its streams served as peers serve them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.relay import busy
from bench.relay.against_relay import prompt
from bench.relay.bare import bare_engine
from bench.relay.clients import Seen, Stream, over_grpc
from bench.relay.mesh import Site
from bench.relay.processes import LOOPBACK, Child, module
from bench.relay.trial import Load
from bench.results_contract import Row, row
from services.cli.bench.stats import quantile
from services.worker.engine.settings import EngineSettings

BATCH = 256
TOKENS = 600  # of each sequence
TOKENS_A_MESSAGE = 16
ALONE = "engine alone"
SHARED, APART = "session, worker on the engine's core", "session, worker on the router's core"
STREAMS = "one stream a request, on the engine's core"
AIM = 1.03


class Steps(NamedTuple):
    """Time from step to step with a full batch, ms."""

    p50: float
    p95: float


async def run(site: Site, load: Load, given: argparse.Namespace) -> list[Row]:
    """All four, in turns; each has the machine to itself."""
    site.step_s = busy.SLEEP_S
    batch, tokens = (load.streams, 60) if given.dry else (BATCH, TOKENS)
    found: dict[str, list[Steps]] = {ALONE: [], SHARED: [], APART: [], STREAMS: []}
    for _ in range(given.repeats):
        for case, runs in found.items():
            noted = site.scratch / "times"
            noted.unlink(missing_ok=True)
            with ExitStack() as children:
                here = Site(site.scratch, site.model, children, site.step_s, site.tokenizer)
                await _run(here, case, noted, batch, tokens)
            runs.append(_steps(noted, batch))
            print(case, runs[-1], flush=True)
    return list(rows(found))


async def _run(site: Site, case: str, noted: Path, batch: int, tokens: int) -> None:
    os.environ[busy.TIMES_VARIABLE] = str(noted)  # children have it from here
    if case == ALONE:
        await _alone(site, batch, tokens)
    elif case == STREAMS:
        worker = _streams(site, batch)
        async with over_grpc(f"{LOOPBACK}:{worker.port}", prompt(), 1, unary=False) as ways:
            await _load(ways.stream, batch, tokens)
    else:
        await _session(site, batch, tokens, apart=case == APART)


async def _alone(site: Site, batch: int, tokens: int) -> None:
    settings = EngineSettings(
        model=site.model.path, engine="simulated", simulated_calibration=site.calibration(), max_seqs=batch
    )
    async with bare_engine(settings, busy.load, prompt(), site.measured) as engine:
        await _load(engine.stream, batch, tokens)


def _streams(site: Site, batch: int) -> Child:
    command = module(
        "engine_worker", "--model", site.model.path, "--calibration", site.calibration(), "--max-seqs", batch,
        "--busy",
    )  # fmt: skip
    return site.module("engine-worker", command, site.measured)


async def _session(site: Site, batch: int, tokens: int, *, apart: bool) -> None:
    router = await site.start_router("router", core=site.rest)
    worker = await site.start_worker(router, site.measured, "bench.relay.busy", max_seqs=batch)
    if apart:
        worker.move(site.rest)
    async with over_grpc(router.public, prompt(), TOKENS_A_MESSAGE) as ways:
        await _load(ways.stream, batch, tokens)


async def _load(stream: Stream, batch: int, tokens: int) -> None:
    seen = Seen()
    await asyncio.gather(*(stream(tokens, seen) for _ in range(batch)))


def _steps(noted: Path, batch: int) -> Steps:
    """Between steps that both had the whole batch."""
    times = busy.times(noted)
    at_s, rows_of = times[1 : int(times[0, 0]) + 1].T
    full = (rows_of[1:] == batch) & (rows_of[:-1] == batch)
    between = sorted((1e3 * np.diff(at_s)[full]).tolist())
    return Steps(quantile(between, 0.5), quantile(between, 0.95))


def rows(found: Mapping[str, Sequence[Steps]]) -> Iterator[Row]:
    """Steps of all, and how much longer they are than alone."""
    for case, runs in found.items():
        yield row(case, "step p50", "ms", [each.p50 for each in runs])
        yield row(case, "step p95", "ms", [each.p95 for each in runs])
        if case == ALONE:
            continue
        samples = [mine.p50 / alone.p50 for mine, alone in zip(runs, found[ALONE], strict=True)]
        aimed = case == SHARED
        met = statistics.median(samples) <= AIM if aimed else None
        yield row(case, "step p50 / alone", "×", samples, aim=f"<= {AIM}" if aimed else None, met=met)
