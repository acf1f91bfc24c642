"""Workers are killed, then frozen, under running streams: nothing lost, nothing doubled, short gaps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

from bench.relay.mesh import Site
from bench.results_contract import Row, row
from bench.streams import stock
from bench.streams.asked import Mix
from bench.streams.load import Load, stubs
from bench.streams.mesh import StreamMesh
from bench.streams.stream import Tally
from bench.streams.strikes import Strike, Striker, around
from services.cli.bench.stats import quantile

CLEAR_S = 10.0
RESUMES = 1000
"""Of one request: with a worker lost every 2 s, the default of 2 ends by design what runs for long."""
KILL_AIM_S, FREEZE_AIM_S = 0.7, 2.0
_MIX = Mix(tokens=(100, 300))


@dataclass(frozen=True, kw_only=True)
class Kills:
    """What happens."""

    streams: int = 200
    workers: int = 4
    seconds: float = 60.0  # of each kind of fault
    every_s: float = 2.0
    thaw_s: float = 2.5
    step_s: float = 0.1
    mix: Mix = _MIX


@dataclass(frozen=True)
class Struck:
    """What came of one kind of fault."""

    tally: Tally
    strikes: list[Strike]
    before: stock.Stock
    after: stock.Stock

    @property
    def gaps_s(self) -> list[float]:
        """Around the faults."""
        return sorted(around(self.strikes, self.tally.gaps))


async def run(site: Site, plan: Kills) -> dict[str, Struck]:
    """By kind of fault. Raises ChildFailed."""
    limits = json.dumps({"resumes": RESUMES})
    mesh = StreamMesh(site, step_s=plan.step_s, router={"limits": limits})
    try:
        await mesh.start_routers(1)
        (asked,) = await mesh.answers(plan.mix)
        await mesh.add_workers(f"worker-{number}" for number in range(plan.workers))
        async with stubs(mesh.addresses, connections=4) as connections:
            found = {}
            for name, every_s, frozen_s in _faults(plan):
                load = Load(connections, asked, Tally())
                striker = Striker(mesh, every_s, frozen_s)
                found[name] = await _struck(mesh, load, striker, plan, every_s)
            return found
    finally:
        await mesh.close()


def _faults(plan: Kills) -> Iterator[tuple[str, float, float | None]]:
    """Name, time between two, and for how long. Two are never frozen at once."""
    yield "killed", plan.every_s, None
    yield "frozen", max(plan.every_s, plan.thaw_s + 1.0), plan.thaw_s


async def _struck(mesh: StreamMesh, load: Load, striker: Striker, plan: Kills, every_s: float) -> Struck:
    before = await stock.take(mesh)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(plan.streams, float("inf"), ramp_s=every_s))
        await asyncio.sleep(every_s)
        await striker.run(max(1, round(plan.seconds / every_s)))
        load.stop()
    after, _ = await stock.cleared(mesh, before, CLEAR_S)
    return Struck(load.tally, striker.strikes, before, after)


def rows(plan: Kills, found: dict[str, Struck]) -> Iterator[Row]:
    """The figures."""
    for name, struck in found.items():
        case = f"{plan.streams} streams, {plan.workers} workers, one {name} at a time"
        aim_s = KILL_AIM_S if name == "killed" else FREEZE_AIM_S
        yield row(case, f"workers {name}", "times", [len(struck.strikes)])
        yield row(case, "streams on them", "streams", [each.held for each in struck.strikes])
        yield from faultless(case, struck.tally)
        gaps_s = struck.gaps_s
        yield row(case, "gap p50", "s", [quantile(gaps_s, 0.5)])
        p99_s = quantile(gaps_s, 0.99)
        yield row(case, "gap p99", "s", [p99_s], aim=f"<= {aim_s:g}", met=p99_s <= aim_s)
        yield row(case, "gap max", "s", [gaps_s[-1]])
        yield from stock.rows(case, struck.before, struck.after)


def faultless(case: str, tally: Tally) -> Iterator[Row]:
    """That every stream and token is accounted for."""
    yield row(case, "streams", "streams", [tally.begun])
    yield row(case, "tokens", "tokens", [tally.tokens])
    yield row(case, "moved", "times", [tally.moves])
    why = ", ".join(tally.failed)
    yield stock.nothing(case, f"streams lost: {why}" if why else "streams lost", tally.lost, "streams")
    yield stock.nothing(case, "tokens doubled", tally.doubled, "tokens")
    yield stock.nothing(case, "tokens missing", tally.missing, "tokens")
    yield stock.nothing(
        case, "tokens and texts other than undisturbed", tally.wrong + tally.wrong_texts, "of them"
    )
