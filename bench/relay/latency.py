"""Time to the first token through router and worker, beside that of the bare engine: at half load.

The same arrivals for all, each with an engine of its own. The mesh's processes share the measured core with
the engine, the client has the other. Prompts come as ids: encoding is another service's time.

Beside them what gRPC alone takes: the engine behind one stream a request, and a plain relay before that,
which hands messages on and decides nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from bench.relay.against_relay import prompt, relay
from bench.relay.bare import bare_engine
from bench.relay.clients import Seen, Stream, over_grpc
from bench.relay.mesh import Site
from bench.relay.processes import LOOPBACK
from bench.relay.trial import Load
from bench.results_contract import Row, row
from services.cli.bench.arrivals import poisson
from services.cli.bench.stats import quantile
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings

TOKENS = 64
HALF = 0.5
SECONDS = 8.0
BARE, MESH = "bare engine", "mesh"
STREAMS, RELAYED = "one stream a request", "plain relay"
AIMS = {"p50": 2.0, "p99": 10.0}  # ms


class First(NamedTuple):
    """Time to the first token, ms."""

    p50: float
    p99: float


async def run(site: Site, load: Load, given: argparse.Namespace) -> list[Row]:
    """All four, in turns."""
    rate = HALF * load.streams / (TOKENS * load.step_s)
    async with AsyncExitStack() as open_ways:
        streams = await _contenders(site, load, open_ways)
        found: dict[str, list[First]] = {case: [] for case in streams}
        for seed in range(given.repeats):
            for case, stream in streams.items():
                found[case].append(await _once(stream, rate, 1.0 if given.dry else SECONDS, seed))
                print(f"{seed} {case}: {found[case][-1]}", file=sys.stderr, flush=True)
    return list(rows(rate, found))


async def _contenders(site: Site, load: Load, open_ways: AsyncExitStack) -> dict[str, Stream]:
    """How each is asked, until `open_ways` ends."""
    router = await site.start_router("router")
    await site.start_worker(router, site.measured, max_seqs=load.streams)
    worker = site.start_streams(site.measured, load.streams)
    direct = f"{LOOPBACK}:{worker.port}"
    relayed = f"{LOOPBACK}:{relay(site, direct, 1).port}"
    settings = EngineSettings(
        model=site.model.path,
        engine="simulated",
        simulated_calibration=site.calibration(),
        max_seqs=load.streams,
    )
    engine = await open_ways.enter_async_context(bare_engine(settings, load_engine, prompt(), site.measured))
    streams: dict[str, Stream] = {BARE: engine.stream}
    for case, address in ((STREAMS, direct), (RELAYED, relayed), (MESH, router.public)):
        ways = await open_ways.enter_async_context(over_grpc(address, prompt(), 1, unary=False))
        streams[case] = ways.stream
    return streams


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


def rows(rate: float, found: Mapping[str, Sequence[First]]) -> Iterator[Row]:
    """Quantiles of all, and what each adds to the bare engine's."""
    load = f"{rate:.0f} requests/s, half load"
    for name, aim in AIMS.items():
        alone = [getattr(each, name) for each in found[BARE]]
        for case, runs in found.items():
            through = [getattr(each, name) for each in runs]
            yield row(load, f"first token {name}, {case}", "ms", through)
            if case == BARE:
                continue
            added = [after - before for before, after in zip(alone, through, strict=True)]
            aimed = case == MESH
            met = statistics.median(added) <= aim if aimed else None
            target = f"<= {aim:g}" if aimed else None
            yield row(load, f"first token {name}, added by {case}", "ms", added, aim=target, met=met)
