"""Streams under stress: `python -m bench.streams kills|routers|scale|soak|vanish|slow`; see the package."""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from bench.relay.mesh import Site
from bench.results_contract import Row, record
from bench.streams import kills, routers, scale, slow, soak, vanish
from services.common.models import resolve

PACKAGES = ("grpcio", "protobuf", "uvloop")


class What(NamedTuple):
    """One bench: what it does unless told otherwise, how, and what is written of it."""

    plan: Any
    run: Callable[[Site, Any], Awaitable[Any]]
    rows: Callable[[Any, Any], Iterator[Row]]


WHAT = {
    "kills": What(kills.Kills(), kills.run, kills.rows),
    "routers": What(routers.Routers(), routers.run, routers.rows),
    "scale": What(scale.Scale(), scale.run, scale.rows),
    "soak": What(soak.Soak(), soak.run, soak.rows),
    "vanish": What(vanish.Vanish(), vanish.run, vanish.rows),
    "slow": What(slow.Slow(), slow.run, slow.rows),
}
CHANGES = ("seconds", "streams", "workers", "clients", "others", "repeats", "pairs", "step_s", "ramp_s")
"""Fields of plans that can be told; each only where the plan has it."""


async def run(what: What, model: str) -> list[Row]:
    """In a directory that is gone afterwards, also when this process is asked to end."""
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as children:
        site = Site(Path(directory), resolve(model, weights=False), children, step_s=0.0)
        await site.start_tokenizer()
        return list(what.rows(what.plan, await what.run(site, what.plan)))


def main() -> None:
    """Run, print the table, write the result."""
    flags = argparse.ArgumentParser(description="Streams under stress.")
    flags.add_argument("what", choices=WHAT)
    for name in CHANGES:
        kind = float if name in ("seconds", "step_s", "ramp_s") else int
        flags.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the plan's")
    flags.add_argument("--model", default="default", help="its tokenizer is what matters")
    flags.add_argument("--results", type=Path, help="directory of the result; unset: bench/results")
    flags.add_argument("--name", help="of the file; unset: streams-…")
    given = flags.parse_args()
    what = _changed(flags, WHAT[given.what], given)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(what, given.model))
    where = {"results": given.results} if given.results else {}
    record(given.name or f"streams-{given.what}", found, PACKAGES, **where)


def _changed(flags: argparse.ArgumentParser, what: What, given: argparse.Namespace) -> What:
    changes = {name: value for name in CHANGES if (value := getattr(given, name)) is not None}
    unknown = [name for name in changes if not hasattr(what.plan, name)]
    if unknown:
        flags.error(f"{given.what} has no {', '.join(unknown)}")
    return what._replace(plan=replace(what.plan, **changes))


if __name__ == "__main__":
    main()
