"""Routers are killed under the streams of our client: each goes on, exactly once, on another router."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from headrace.client import Answer, Finished, Headrace
from headrace.errors import HeadraceError
from headrace.v1 import router_pb2

from bench.relay.mesh import Site
from bench.results_contract import Row, row
from bench.streams import stock
from bench.streams.asked import Asked, Mix
from bench.streams.kills import CLEAR_S, faultless
from bench.streams.mesh import StreamMesh
from bench.streams.stream import TIMEOUT_S, Stream, Tally
from bench.streams.strikes import Strike, around
from services.cli.bench.stats import quantile

_CLIENTS = 4  # connections to each router
_MIX = Mix(tokens=(100, 300))


@dataclass(frozen=True, kw_only=True)
class Routers:
    """What happens."""

    streams: int = 200
    routers: int = 2
    workers: int = 2
    seconds: float = 60.0
    every_s: float = 6.0  # or later: when the router that was killed is back with all workers
    step_s: float = 0.1
    mix: Mix = _MIX


@dataclass
class Outcome:
    """What came of it."""

    tally: Tally = field(default_factory=Tally)
    strikes: list[Strike] = field(default_factory=list)
    resumes: int = 0
    again: int = 0  # requests that were sent anew, as a whole
    running: set[Answer] = field(default_factory=set)
    stock: tuple[stock.Stock, stock.Stock] | None = None

    def on(self, address: str) -> int:
        """Streams with output that a router has now."""
        return Counter(each.address for each in self.running)[address]


async def run(site: Site, plan: Routers) -> Outcome:
    """One router after the other. Raises ChildFailed."""
    mesh, found = StreamMesh(site, step_s=plan.step_s), Outcome()
    try:
        await mesh.start_routers(plan.routers)
        (asked,) = await mesh.answers(plan.mix)
        await mesh.add_workers(f"worker-{number}" for number in range(plan.workers))
        before = await stock.take(mesh)
        async with AsyncExitStack() as stack:
            where = ",".join(mesh.addresses)
            clients = [await stack.enter_async_context(Headrace(where)) for _ in range(_CLIENTS)]
            await _struck(mesh, plan, clients, asked, found)
        after, _ = await stock.cleared(mesh, before, CLEAR_S)
        found.stock = before, after
        return found
    finally:
        await mesh.close()


async def _struck(
    mesh: StreamMesh, plan: Routers, clients: Sequence[Headrace], asked: Sequence[Asked], found: Outcome
) -> None:
    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(plan.streams):
            wait_s = plan.every_s / 2 * number / plan.streams
            group.create_task(_client(clients[number % len(clients)], asked, found, until, wait_s, number))
        next_s, end_s = time.monotonic(), time.monotonic() + plan.seconds
        while (next_s := max(next_s + plan.every_s, time.monotonic())) < end_s:
            await asyncio.sleep(next_s - time.monotonic())
            await _strike(mesh, found)
        until.set()


async def _strike(mesh: StreamMesh, found: Outcome) -> None:
    """Kills the router with the most streams; returns when another process is in its place."""
    number = max(range(len(mesh.doors)), key=lambda each: found.on(mesh.doors[each].public))
    door = mesh.doors[number]
    found.strikes.append(Strike(time.monotonic(), found.on(door.public)))
    door.child.send(signal.SIGKILL)
    await asyncio.to_thread(door.child.stop)
    await mesh.replace_router(number)


async def _client(
    mesh: Headrace,
    asked: Sequence[Asked],
    found: Outcome,
    until: asyncio.Event,
    wait_s: float,
    seed: int,
) -> None:
    """One thing after the other."""
    await asyncio.sleep(wait_s)
    choose = random.Random(seed)
    while not until.is_set():
        await _read(mesh, choose.choice(asked), found)


async def _read(mesh: Headrace, asked: Asked, found: Outcome) -> None:
    """One stream to its end. Failures are counted."""
    tally, request = found.tally, router_pb2.GenerateRequest()
    request.CopyFrom(asked.request)
    tally.begun += 1
    stream, answer = Stream(asked, tally), mesh.answer(request, timeout_s=TIMEOUT_S)
    try:
        async for event in answer:
            if isinstance(event, Finished):
                stream.finish(event)
            else:
                stream.take(event, time.monotonic())
                found.running.add(answer)
    except HeadraceError as error:
        tally.failed[error.reason or error.code.name] += 1
    finally:
        found.running.discard(answer)
        found.resumes += answer.resumes
        found.again += answer.retries


def rows(plan: Routers, found: Outcome) -> Iterator[Row]:
    """The figures."""
    case = f"{plan.streams} streams, {plan.routers} routers, one killed at a time"
    yield row(case, "routers killed", "times", [len(found.strikes)])
    yield row(case, "streams on them", "streams", [each.held for each in found.strikes])
    yield from faultless(case, found.tally)
    yield row(case, "asked for the rest", "times", [found.resumes])
    yield row(case, "asked again for the whole", "times", [found.again])
    gaps_s = sorted(around(found.strikes, found.tally.gaps))
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        yield row(case, f"gap {name}", "s", [quantile(gaps_s, part)])
    yield row(case, "gap max", "s", [gaps_s[-1]])
    assert found.stock is not None
    yield from stock.rows(case, *found.stock)
