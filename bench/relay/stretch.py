"""What serving does to an engine's steps of 4 ms of sleep and 1 ms of Python, with 256 sequences.

Alone: driven by this process, nothing else runs. Session: worker and router as they are, to clients that
take 16 tokens a message; the worker shares the engine's core, or that of router and clients. One stream a
request: the same engine, its streams served as peers serve them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
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
from bench.relay.processes import LOOPBACK
from bench.relay.trial import Load
from bench.results_contract import Row, row
from services.cli.bench.stats import quantile
from services.worker.engine.settings import EngineSettings

BATCH = 256
TOKENS = 4000  # of each sequence, at most
STEPS = 400  # that had the whole batch
LIMIT_S = 40.0
_POLL_S = 0.2
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
    batch = load.streams if given.dry else BATCH
    found: dict[str, list[Steps]] = {ALONE: [], SHARED: [], APART: [], STREAMS: []}
    for _ in range(given.repeats):
        for case, runs in found.items():
            noted = site.scratch / "times"
            noted.unlink(missing_ok=True)
            with ExitStack() as children:
                await _run(site.ending_with(children), case, noted, batch)
            runs.append(_steps(noted, batch))
            print(case, runs[-1], flush=True)
    return list(rows(found))


async def _run(site: Site, case: str, noted: Path, batch: int) -> None:
    os.environ[busy.TIMES_VARIABLE] = str(noted)  # children have it from here
    if case == ALONE:
        await _alone(site, batch, noted)
    elif case == STREAMS:
        worker = site.start_streams(site.measured, _slots(batch), "--busy")
        async with over_grpc(f"{LOOPBACK}:{worker.port}", prompt(), 1, unary=False) as ways:
            await _load(ways.stream, batch, noted)
    else:
        await _session(site, batch, noted, apart=case == APART)


async def _alone(site: Site, batch: int, noted: Path) -> None:
    settings = EngineSettings(
        model=site.model.path,
        engine="simulated",
        simulated_calibration=site.calibration(),
        max_seqs=_slots(batch),
    )
    async with bare_engine(settings, busy.load, prompt(), site.measured) as engine:
        await _load(engine.stream, batch, noted)


def _slots(batch: int) -> int:
    """More than are used: the router keeps an eighth for short requests."""
    return batch + batch // 4


async def _session(site: Site, batch: int, noted: Path, *, apart: bool) -> None:
    router = await site.start_router("router", core=site.rest)
    worker = await site.start_worker(router, site.measured, "bench.relay.busy", max_seqs=_slots(batch))
    if apart:
        worker.move(site.rest)
    async with over_grpc(router.public, prompt(), TOKENS_A_MESSAGE) as ways:
        await _load(ways.stream, batch, noted)


async def _load(stream: Stream, batch: int, noted: Path) -> None:
    """Streams that go on until enough steps had all of them, or LIMIT_S is over."""
    seen = Seen()
    running = [asyncio.create_task(stream(TOKENS, seen)) for _ in range(batch)]
    end_s = time.monotonic() + LIMIT_S
    try:
        while len(_between_ms(noted, batch)) < STEPS and time.monotonic() < end_s:
            await asyncio.sleep(_POLL_S)
            for each in running:
                if each.done():
                    each.result()
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _steps(noted: Path, batch: int) -> Steps:
    between = sorted(_between_ms(noted, batch))
    if not between:
        raise RuntimeError(f"no two steps in a row had all {batch} sequences")
    return Steps(quantile(between, 0.5), quantile(between, 0.95))


def _between_ms(noted: Path, batch: int) -> list[float]:
    """Between steps that both had the whole batch."""
    times = busy.times(noted)
    at_s, sequences = times[1 : int(times[0, 0]) + 1].T
    full = (sequences[1:] == batch) & (sequences[:-1] == batch)
    found: list[float] = (1e3 * np.diff(at_s)[full]).tolist()
    return found


def rows(found: Mapping[str, Sequence[Steps]]) -> Iterator[Row]:
    """Steps of all, and how much longer they are than alone."""
    for case, runs in found.items():
        yield row(case, "step p50", "ms", [each.p50 for each in runs])
        yield row(case, "step p95", "ms", [each.p95 for each in runs])
        if case == ALONE:
            continue
        samples = [mine.p50 / alone.p50 for mine, alone in zip(runs, found[ALONE], strict=True)]
        aimed = case in (SHARED, APART)
        met = statistics.median(samples) <= AIM if aimed else None
        yield row(case, "step p50 / alone", "×", samples, aim=f"<= {AIM}" if aimed else None, met=met)
