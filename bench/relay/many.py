"""Tokens per core-second of four routers with 16 workers against one router.

Each router has 64 streams in both. A worker frames every step for every router, so a router among many gets
more and smaller frames. All routers share the measured core, and steps take 40 ms, so that it has room.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle

from bench.quiet import wait_for_quiet
from bench.relay.against_relay import prompt
from bench.relay.clients import Seen, Ways, over_grpc
from bench.relay.mesh import Router, Site
from bench.relay.tables import Runs, figures
from bench.relay.trial import Contender, Cost, Load, measure
from bench.results_contract import Row, row

STEP_S = 0.04
TOKENS = 4  # a message
ONE, ONE_OF_16, FOUR = "1 router, 4 workers", "1 router, 16 workers", "4 routers, 16 workers"
SHAPES = {ONE: (1, 4), ONE_OF_16: (1, 16), FOUR: (4, 16)}
AIM = 0.9


async def measure_all(site: Site, load: Load, repeats: int) -> dict[str, list[Cost]]:
    """Takes turns."""
    site.step_s = STEP_S
    asked = {name: await _contender(site, name, *shape) for name, shape in SHAPES.items()}
    runs: dict[str, list[Cost]] = {name: [] for name in asked}
    for _ in range(repeats):
        for name, contender in asked.items():
            wait_for_quiet(load.quiet_s)
            streams = load.streams * SHAPES[name][0]
            runs[name].append(
                await measure(contender, load._replace(streams=streams, step_s=STEP_S, rounds=1))
            )
    return runs


async def _contender(site: Site, name: str, routers: int, workers: int) -> Contender:
    started = [await site.start_router(f"router-{routers}-{workers}-{number}") for number in range(routers)]
    site.start_sessions(started, workers)
    for each in started:
        await site.attached(each, workers)
    return Contender(name, tuple(each.child for each in started), partial(_over_all, started))


@asynccontextmanager
async def _over_all(routers: Sequence[Router]) -> AsyncIterator[Ways]:
    """Streams take turns over the routers."""
    async with AsyncExitStack() as stack:
        ways = [
            await stack.enter_async_context(over_grpc(each.public, prompt(), TOKENS, unary=False))
            for each in routers
        ]
        turns = cycle(ways)

        async def stream(tokens: int, seen: Seen) -> None:
            await next(turns).stream(tokens, seen)

        yield Ways(stream)


def rows(runs: Runs) -> Iterator[Row]:
    """Tokens per core-second, beside those of one router."""
    for case, costs in runs.items():
        yield from figures(case, costs)
    for base in (ONE, ONE_OF_16):
        pairs = zip(runs[base], runs[FOUR], strict=True)
        shares = [one.cpu_us / four.cpu_us for one, four in pairs]
        met = statistics.median(shares) >= AIM
        yield row(FOUR, "tokens per core-second / peer's", "×", shares, aim=f">= {AIM}", met=met, peer=base)
