"""A thousand clients die mid-stream, without a word: all that was done for them stops within seconds."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bench.relay.mesh import Site
from bench.relay.processes import Child
from bench.results_contract import Row, row
from bench.streams import stock
from bench.streams.asked import Mix
from bench.streams.kills import faultless
from bench.streams.load import Load, stubs
from bench.streams.mesh import StreamMesh
from bench.streams.stream import Tally

FREED_AIM_S = 5.0
_LIMIT_S = 30.0
_TOKENS = 4000  # of each answer: none of them ends by itself
_MIX = Mix(tokens=(20, 60))


@dataclass(frozen=True, kw_only=True)
class Vanish:
    """What happens."""

    clients: int = 1000
    others: int = 50  # clients that stay
    repeats: int = 3
    step_s: float = 0.2
    mix: Mix = _MIX


@dataclass(frozen=True)
class Vanished:
    """What came of one crowd."""

    held: stock.Stock  # before it vanished
    left: stock.Stock  # when all was free, or time was up
    freed_s: float


@dataclass(frozen=True)
class Outcome:
    """Of all crowds."""

    others: Tally
    before: stock.Stock
    crowds: list[Vanished]
    after: stock.Stock


async def run(site: Site, plan: Vanish) -> Outcome:
    """One crowd after the other. Raises ChildFailed."""
    mesh = StreamMesh(site, step_s=plan.step_s, slots=plan.clients + plan.others)
    try:
        await mesh.start_routers(1)
        (asked,) = await mesh.answers(plan.mix)
        await mesh.add_worker("worker-0")
        async with stubs(mesh.addresses) as connections:
            before = await stock.take(mesh)
            others = Load(connections, asked, Tally())
            crowds = [await _vanished(site, mesh, plan, before) for _ in range(plan.repeats)]
            await _beside(site, mesh, plan, others)
            after, _ = await stock.cleared(mesh, before, _LIMIT_S)
            return Outcome(others.tally, before, crowds, after)
    finally:
        await mesh.close()


async def _vanished(site: Site, mesh: StreamMesh, plan: Vanish, before: stock.Stock) -> Vanished:
    child = await _crowd(site, mesh, plan)
    held = await stock.take(mesh)
    child.send(signal.SIGKILL)
    left, freed_s = await stock.cleared(mesh, before, _LIMIT_S)
    return Vanished(held, left, freed_s)


async def _beside(site: Site, mesh: StreamMesh, plan: Vanish, others: Load) -> None:
    """Once more beside clients that stay."""
    async with asyncio.TaskGroup() as group:
        group.create_task(others.run(plan.others, float("inf"), ramp_s=0.0))
        child = await _crowd(site, mesh, plan)
        child.send(signal.SIGKILL)
        had = others.tally.whole
        while others.tally.whole - had < plan.others and not others.tally.failed:  # noqa: ASYNC110
            await asyncio.sleep(plan.step_s)
        others.stop()


async def _crowd(site: Site, mesh: StreamMesh, plan: Vanish) -> Child:
    """Clients that have all had a token."""
    command = [
        sys.executable, "-m", "bench.streams.crowd", mesh.addresses[0], "--ids", str(site.ids),
        "--streams", str(plan.clients), "--tokens", str(_TOKENS), "--connections", str(min(20, plan.clients)),
    ]  # fmt: skip

    def start() -> Child:
        return Child("crowd", command, core=None, scratch=site.scratch, says_port=True)

    return await asyncio.to_thread(site.keep, start)


def rows(plan: Vanish, found: Outcome) -> Iterator[Row]:
    """The figures."""
    case = f"{plan.clients} clients killed"
    for what in ("flights in routers", "sequences in workers", "KV blocks"):
        yield row(case, f"before: {what}", "of them", [each.held.held[what] for each in found.crowds])
    freed_s = [each.freed_s for each in found.crowds]
    clear = all(each.left.clear(found.before) for each in found.crowds)
    yield row(
        case, "until nothing was held", "s", freed_s,
        aim=f"each <= {FREED_AIM_S:g}", met=clear and max(freed_s) <= FREED_AIM_S,
    )  # fmt: skip
    yield from stock.rows(case, found.before, found.after)
    yield from faultless(f"{plan.others} clients beside them", found.others)
