"""Workers come and go under load: nobody notices, and who leaves has left within seconds."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.relay.mesh import Site
from bench.results_contract import Row, row
from bench.streams import stock
from bench.streams.asked import Mix
from bench.streams.kills import CLEAR_S, faultless
from bench.streams.load import Load, stubs
from bench.streams.mesh import Mill, StreamMesh
from bench.streams.stream import Tally
from services.cli.bench.stats import quantile

DRAIN_AIM_S = 5.0
_POLL_S = 0.01
_MIX = Mix(tokens=(100, 300))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What happens."""

    streams: int = 100
    workers: int = 4
    seconds: float = 45.0  # a third of them with one worker, with all, with one again
    step_s: float = 0.1
    mix: Mix = _MIX


@dataclass
class Scaled:
    """What came of it."""

    tally: Tally
    joined_s: float = 0.0  # from the start of the processes until they could take work
    drained_s: list[float] = field(default_factory=list)
    exits: list[int | None] = field(default_factory=list)
    around_s: list[float] = field(default_factory=list)  # gaps while workers left
    held: list[int] = field(default_factory=list)  # streams on each worker as it was asked to leave
    left: tuple[stock.Stock, stock.Stock] | None = None


async def run(site: Site, plan: Scale) -> Scaled:
    """1, all, 1. Raises ChildFailed."""
    mesh = StreamMesh(site, step_s=plan.step_s)
    found = Scaled(Tally())
    try:
        await mesh.start_routers(1)
        (asked,) = await mesh.answers(plan.mix)
        await mesh.add_worker("worker-0")
        async with stubs(mesh.addresses, connections=4) as connections:
            before = await stock.take(mesh)
            load = Load(connections, asked, found.tally)
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run(plan.streams, float("inf"), ramp_s=1.0))
                await _scaled(mesh, plan, found)
                load.stop()
            after, _ = await stock.cleared(mesh, before, CLEAR_S)
            found.left = before, after
            return found
    finally:
        await mesh.close()


async def _scaled(mesh: StreamMesh, plan: Scale, found: Scaled) -> None:
    await asyncio.sleep(plan.seconds / 3)
    names, began_s = [f"worker-{number}" for number in range(1, plan.workers)], time.monotonic()
    await mesh.add_workers(names)
    found.joined_s = time.monotonic() - began_s
    await asyncio.sleep(plan.seconds / 3)
    there = await mesh.listed(mesh.doors[0])
    found.held = [each.requests for each in there if each.worker_id in names]
    began_s = time.monotonic()
    found.drained_s = await asyncio.gather(*(_drained(mesh.mills[name], found) for name in names))
    found.around_s = found.tally.gaps.between(began_s, time.monotonic())
    await asyncio.sleep(plan.seconds / 3)


async def _drained(mill: Mill, found: Scaled) -> float:
    """Asks a worker to leave as a container's runtime does; returns how long that took, in seconds."""
    began_s = time.monotonic()
    mill.child.send(signal.SIGTERM)
    while mill.child.running:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
    found.exits.append(mill.child.exit_code)
    return time.monotonic() - began_s


def rows(plan: Scale, found: Scaled) -> Iterator[Row]:
    """The figures."""
    case = f"1 → {plan.workers} → 1 workers, {plan.streams} streams"
    yield from faultless(case, found.tally)
    yield row(case, "start of workers", "s", [found.joined_s])
    yield row(case, "streams on each that leaves", "streams", found.held)
    worst_s = max(found.drained_s)
    met = worst_s <= DRAIN_AIM_S
    yield row(case, "drain", "s", found.drained_s, aim=f"each <= {DRAIN_AIM_S:g}", met=met)
    yield stock.nothing(case, "drains that failed", sum(map(bool, found.exits)), "workers")
    gaps_s = sorted(found.around_s)
    yield row(case, "gap p99 while they leave", "s", [quantile(gaps_s, 0.99)])
    yield row(case, "gap max while they leave", "s", [gaps_s[-1]])
    assert found.left is not None
    yield from stock.rows(case, *found.left)
