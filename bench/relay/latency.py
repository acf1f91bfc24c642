"""Time to the first token through router and worker, beside that of the bare engine: at half load.

The same arrivals for both. The mesh's processes share the measured core with the engine, the client has the
other. Prompts come as ids: encoding is another service's time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.relay.against_relay import prompt
from bench.relay.bare import bare_engine
from bench.relay.clients import Seen, Stream, over_grpc
from bench.relay.mesh import Site
from bench.relay.trial import Load
from bench.results_contract import Row, row
from services.cli.bench.arrivals import poisson
from services.cli.bench.stats import quantile
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings

TOKENS = 64
HALF = 0.5
SECONDS = 8.0
AIMS = {"p50": 2.0, "p99": 10.0}  # ms


class First(NamedTuple):
    """Time to the first token, ms."""

    p50: float
    p99: float


async def run(site: Site, load: Load, given: argparse.Namespace) -> list[Row]:
    """Both, in turns."""
    dry = bool(given.dry)
    rate = HALF * load.streams / (TOKENS * load.step_s)
    bare: list[First] = []
    mesh: list[First] = []
    router = await site.start_router("router")
    await site.start_worker(router, site.measured, max_seqs=load.streams)
    settings = EngineSettings(
        model=site.model.path,
        engine="simulated",
        simulated_calibration=site.calibration(),
        max_seqs=load.streams,
    )
    async with (
        over_grpc(router.public, prompt(), 1) as ways,
        bare_engine(settings, load_engine, prompt(), site.measured) as engine,
    ):
        for seed in range(given.repeats):
            for stream, found in ((engine.stream, bare), (ways.stream, mesh)):
                found.append(await _once(stream, rate, 1.0 if dry else SECONDS, seed))
    return list(rows(rate, bare, mesh))


async def _once(stream: Stream, rate: float, seconds: float, seed: int) -> First:
    seen = Seen()
    begin_s = time.monotonic()
    running: list[asyncio.Task[None]] = []
    for at_s in poisson(rate, seed):
        if at_s > seconds and running:
            break
        await asyncio.sleep(max(0.0, begin_s + at_s - time.monotonic()))
        running.append(asyncio.create_task(stream(TOKENS, seen)))
    await asyncio.gather(*running)
    first = sorted(seen.first_s)
    return First(1e3 * quantile(first, 0.5), 1e3 * quantile(first, 0.99))


def rows(rate: float, bare: Sequence[First], mesh: Sequence[First]) -> Iterator[Row]:
    """Quantiles of both, and what the mesh adds."""
    case = f"{rate:.0f} requests/s, half load"
    for name, aim in AIMS.items():
        alone, through = ([getattr(each, name) for each in runs] for runs in (bare, mesh))
        yield row(case, f"first token {name}, bare engine", "ms", alone)
        yield row(case, f"first token {name}, mesh", "ms", through)
        added = [after - before for before, after in zip(alone, through, strict=True)]
        met = statistics.median(added) <= aim
        yield row(case, f"first token {name}, added", "ms", added, aim=f"<= {aim:g}", met=met)
