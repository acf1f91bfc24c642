"""Clients that read a byte a second beside others that read: the others do not notice, the slow are ended.

Trials take turns: the same clients over the same relay, once with the relay open, once turned down.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import grpc
from headrace.v1.router_pb2_grpc import RouterServiceStub

from bench.relay.mesh import Site
from bench.results_contract import Row, row
from bench.scrape import scrape, total
from bench.streams import stock
from bench.streams.asked import Asked, Mix
from bench.streams.growth import rss_mb
from bench.streams.kills import CLEAR_S, faultless
from bench.streams.load import Load, stubs
from bench.streams.mesh import StreamMesh
from bench.streams.stream import Tally, read
from bench.streams.tap import Tap
from services.cli.bench.stats import quantile

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

MOVES_AIM = 1.05
GROWTH_AIM_KB = 64.0
SLOW_CONSUMER = "SLOW_CONSUMER"
_AFTER_S = 2.0  # that are measured after the slow clients were ended
_LOOK_S = 0.5
_SMALL_WINDOW = (
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""With a stream's usual window of 64 KiB, a thousand tokens would be on their way before anything waits."""
_ENDLESS = Mix(requests=8, tokens=(4000, 4000), seed=2)
_MIX = Mix(tokens=(100, 300))


@dataclass(frozen=True, kw_only=True)
class Slow:
    """What happens."""

    clients: int = 200  # slow in every other trial
    others: int = 200
    pairs: int = 5
    stall_s: float = 10.0  # the router's setting
    settle_s: float = 3.0
    step_s: float = 0.1
    mix: Mix = _MIX  # of the others
    endless: Mix = _ENDLESS  # of the clients: no answer may end before its trial

    @property
    def window_s(self) -> float:
        """That is measured."""
        return self.stall_s + _AFTER_S


class Trial(NamedTuple):
    """One of a pair."""

    clients: Tally
    gap_p99_s: float  # of the others
    router_mb: tuple[float, float]  # as it began, and the most


@dataclass(frozen=True)
class Slowed:
    """What came of all trials."""

    others: Tally
    open: list[Trial]
    turned_down: list[Trial]
    before: stock.Stock
    after: stock.Stock


async def run(site: Site, plan: Slow) -> Slowed:
    """All pairs. Raises ChildFailed."""
    router: dict[str, object] = {"slow_reader": json.dumps({"stall_s": plan.stall_s})}
    mesh = StreamMesh(site, step_s=plan.step_s, slots=2 * (plan.clients + plan.others), router=router)
    others = Tally()
    trials: dict[bool, list[Trial]] = {True: [], False: []}
    try:
        await mesh.start_routers(1)
        asked, endless = await mesh.answers(plan.mix, plan.endless)
        await mesh.add_worker("worker-0")
        before = await stock.take(mesh)
        for number in range(2 * plan.pairs):
            slow = number % 4 in (1, 2)
            load = partial(Load, asked=asked, tally=others)
            trials[slow].append(await _trial(mesh, plan, load, endless, slow=slow))
        after, _ = await stock.cleared(mesh, before, CLEAR_S)
        return Slowed(others, trials[False], trials[True], before, after)
    finally:
        await mesh.close()


async def _trial(
    mesh: StreamMesh, plan: Slow, others: partial[Load], endless: Sequence[Asked], *, slow: bool
) -> Trial:
    tally = Tally()
    async with AsyncExitStack() as stack:
        connections = await stack.enter_async_context(stubs(mesh.addresses, connections=4))
        tap = await stack.enter_async_context(Tap(mesh.addresses[0]))
        clients = await stack.enter_async_context(_clients(tap, plan, endless, tally))
        load = others(connections)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(plan.others, float("inf"), ramp_s=plan.settle_s / 2))
            await asyncio.sleep(plan.settle_s)
            ended = await _ended(mesh)
            if slow:
                tap.turn_down()
            began_s = time.monotonic()
            memory = await _most_memory(mesh, plan.window_s)
            gaps_s = load.tally.gaps.ended_between(began_s, time.monotonic())
            load.stop()
            if slow:
                await _given_up(mesh, ended + plan.clients)
                tap.open()
                await asyncio.wait(clients, timeout=CLEAR_S)
    return Trial(tally, quantile(gaps_s, 0.99), memory)


async def _ended(mesh: StreamMesh) -> float:
    """Requests that the router has ended since their clients did not read."""
    samples = await asyncio.to_thread(scrape, mesh.doors[0].metrics_url)
    return total(samples, "headrace_requests_total", outcome=SLOW_CONSUMER.lower())


async def _given_up(mesh: StreamMesh, clients: float) -> None:
    """Waits for so many of them, at most CLEAR_S."""
    end_s = time.monotonic() + CLEAR_S
    while await _ended(mesh) < clients and time.monotonic() < end_s:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def _clients(
    tap: Tap, plan: Slow, asked: Sequence[Asked], tally: Tally
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Each with a connection of its own through the tap; who is not done at the end leaves."""
    async with AsyncExitStack() as stack:
        reading = []
        for number in range(plan.clients):
            connection = grpc.aio.insecure_channel(tap.address, options=_SMALL_WINDOW)
            stub: RouterServiceAsyncStub = RouterServiceStub(await stack.enter_async_context(connection))
            reading.append(asyncio.create_task(read(stub, asked[number % len(asked)], tally)))
        try:
            yield reading
        finally:
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)


async def _most_memory(mesh: StreamMesh, seconds: float) -> tuple[float, float]:
    """Of the router during this time, in MB: at the beginning, and the most."""
    pid, end_s = mesh.doors[0].child.pid, time.monotonic() + seconds
    looks = [rss_mb(pid)]
    while (left_s := end_s - time.monotonic()) > 0:
        await asyncio.sleep(min(_LOOK_S, left_s))
        looks.append(rss_mb(pid))
    return looks[0], max(looks)


def rows(plan: Slow, found: Slowed) -> Iterator[Row]:
    """The figures."""
    beside = f"{plan.others} clients beside {plan.clients}"
    for name, trials in (("that read", found.open), ("that read a byte a second", found.turned_down)):
        gaps_ms = [1e3 * each.gap_p99_s for each in trials]
        yield row(f"{beside} {name}", "between tokens p99", "ms", gaps_ms)
    case = f"{beside} that read a byte a second"
    pairs = list(zip(found.turned_down, found.open, strict=True))
    moves = [slow.gap_p99_s / other.gap_p99_s for slow, other in pairs]
    met = statistics.median(moves) <= MOVES_AIM
    yield row(
        case, "between tokens p99 / peer's", "×", moves,
        aim=f"<= {MOVES_AIM:g}", met=met, peer=f"{beside} that read",
    )  # fmt: skip
    ended = sum(each.clients.failed[SLOW_CONSUMER] for each in found.turned_down)
    asked = plan.clients * len(found.turned_down)
    yield row(case, "slow clients", "streams", [asked])
    yield stock.nothing(case, "slow clients not ended with SLOW_CONSUMER", asked - ended, "streams")
    wrong = sum(
        each.clients.doubled + each.clients.missing + each.clients.wrong for each in found.turned_down
    )
    yield stock.nothing(case, "wrong tokens that they got before", wrong, "tokens")
    grown_kb = [1024 * (each.router_mb[1] - each.router_mb[0]) / plan.clients for each in found.turned_down]
    met = max(grown_kb) <= GROWTH_AIM_KB
    yield row(case, "router's memory, for each", "KB", grown_kb, aim=f"each <= {GROWTH_AIM_KB:g}", met=met)
    yield from faultless(case, found.others)
    yield from stock.rows(case, found.before, found.after)
