"""Thousands of streams over two routers for minutes: memory stays, and nothing is left at the end."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bench.relay.mesh import Site
from bench.results_contract import Row, row
from bench.scrape import scrape
from bench.streams import stock
from bench.streams.asked import Mix
from bench.streams.growth import COUNTED, LOOK_S, Growth, rss_mb
from bench.streams.kills import CLEAR_S, faultless
from bench.streams.load import Load, stubs
from bench.streams.mesh import StreamMesh
from bench.streams.stream import Tally

SLOPE_AIM_MB = 1.0
RATE_AIM = 0.9
"""Part of the asked tokens a second that must flow for the run to be what it says."""
_CONNECTIONS = 4  # to each router
_MIX = Mix(tokens=(250, 500), tokens_a_message=8)


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What happens. Streams are 50 to 100 s long, and a part of them is left by its clients midway."""

    streams: int = 2000
    routers: int = 2
    workers: int = 2
    seconds: float = 600.0
    step_s: float = 0.2
    ramp_s: float = 30.0
    leave: float = 0.05
    mix: Mix = _MIX


@dataclass(frozen=True)
class Soaked:
    """What came of it."""

    tally: Tally
    growth: Growth
    at_once: list[int]  # streams, at each look
    tokens_per_s: float
    outcomes: Counter[str]  # of requests, as the routers tell
    before: stock.Stock
    after: stock.Stock


async def run(site: Site, plan: Soak) -> Soaked:
    """One run. Raises ChildFailed."""
    mesh = StreamMesh(site, step_s=plan.step_s, slots=-(-plan.streams * 3 // (2 * plan.workers)))
    try:
        await mesh.start_routers(plan.routers)
        (asked,) = await mesh.answers(plan.mix)
        await mesh.add_workers(f"worker-{number}" for number in range(plan.workers))
        async with stubs(mesh.addresses, _CONNECTIONS) as connections:
            load = Load(connections, asked, Tally(), leave=plan.leave)
            return await _soaked(mesh, load, plan)
    finally:
        await mesh.close()


async def _soaked(mesh: StreamMesh, load: Load, plan: Soak) -> Soaked:
    before, outcomes = await stock.take(mesh), await _outcomes(mesh)
    growth, tally = Growth(_pids(mesh)), load.tally
    at_once: list[int] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(plan.streams, float("inf"), plan.ramp_s))
        await asyncio.sleep(plan.ramp_s)
        counting = group.create_task(_count(tally, at_once))
        had = tally.tokens
        await growth.watch(plan.seconds)
        tokens_per_s = (tally.tokens - had) / plan.seconds
        counting.cancel()
        load.stop()
    after, _ = await stock.cleared(mesh, before, CLEAR_S)
    return Soaked(tally, growth, at_once, tokens_per_s, await _outcomes(mesh) - outcomes, before, after)


async def _count(tally: Tally, at_once: list[int]) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        at_once.append(tally.begun - tally.whole - tally.left - tally.failed.total())


def _pids(mesh: StreamMesh) -> dict[str, int]:
    """Routers, workers, their engines, and this process."""
    found = {f"router {number}": door.child.pid for number, door in enumerate(mesh.doors)}
    for name, mill in mesh.mills.items():
        worker, engine, *_ = _with_engine_last(mill.pids())
        found.update({name.replace("-", " "): worker, name.replace("worker-", "engine "): engine})
    return {**found, "clients": os.getpid()}


def _with_engine_last(pids: list[int]) -> list[int]:
    """The engine is the child with the most memory: beside it there is only multiprocessing's tracker."""
    worker, *children = pids
    return [worker, max(children, key=rss_mb)]


async def _outcomes(mesh: StreamMesh) -> Counter[str]:
    """How requests ended, over all routers."""
    found: Counter[str] = Counter()
    for samples in await asyncio.gather(
        *(asyncio.to_thread(scrape, each.metrics_url) for each in mesh.doors)
    ):
        for each in samples:
            if each.name == "headrace_requests_total":
                found[each.labels["outcome"]] += round(each.value)
    return found


def rows(plan: Soak, found: Soaked) -> Iterator[Row]:
    """The figures."""
    rate = plan.streams / plan.step_s
    case = f"{plan.streams} streams at {1 / plan.step_s:g} tok/s, {plan.routers} routers, {plan.seconds:g} s"
    yield row(case, "streams at once", "streams", [statistics.median(found.at_once)])
    met = found.tokens_per_s >= RATE_AIM * rate
    yield row(
        case, "tokens per second", "tok/s", [found.tokens_per_s], aim=f">= {RATE_AIM * rate:g}", met=met
    )
    yield from faultless(case, found.tally)
    yield from _accounted(case, found)
    for name, looks in found.growth.looks.items():
        yield row(case, f"{name}: busy", "cores", [found.growth.cores(name)])
        yield row(case, f"{name}: memory at the end", "MB", [looks[-1].rss_mb])
        yield _slope(case, name, found.growth)
    yield from stock.rows(case, found.before, found.after)


def _slope(case: str, name: str, growth: Growth) -> Row:
    slope = growth.slope_mb(name)
    ours = name == "clients"
    return row(
        case, f"{name}: growth over the last {COUNTED:.0%}", "MB/min", [slope],
        aim=None if ours else f"< {SLOPE_AIM_MB:g}", met=None if ours else slope < SLOPE_AIM_MB,
    )  # fmt: skip


def _accounted(case: str, found: Soaked) -> Iterator[Row]:
    """Both sides count the same."""
    tally, outcomes = found.tally, found.outcomes
    yield row(case, "left midway", "streams", [tally.left])
    whole = abs(outcomes["ok"] - tally.whole)
    yield stock.nothing(case, "streams that routers count otherwise", whole, "streams")
    others = abs(outcomes.total() - outcomes["ok"] - tally.left - tally.failed.total())
    yield stock.nothing(case, "ends that routers count otherwise", others, "streams")
