"""`python -m bench.relay`; see the package's docstring."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvloop

from bench.quiet import wait_for_quiet
from bench.relay import against_relay, latency, many, smg, stretch, worker
from bench.relay.mesh import Site
from bench.relay.processes import pin
from bench.relay.trial import Contender, Cost, Load, measure
from bench.results_contract import Row, record
from services.common.models import resolve

DRY = Load(streams=4, tokens=12, rounds=1, window_s=0.2, calls=8, at_once=2, settle_s=0.1, quiet_s=0.0)
PACKAGES = ("grpcio", "protobuf", "uvloop")


async def in_turns(contenders: Sequence[Contender], load: Load, repeats: int) -> dict[str, list[Cost]]:
    """Every contender once a round."""
    runs: dict[str, list[Cost]] = {each.name: [] for each in contenders}
    for repeat in range(repeats):
        for each in contenders:
            wait_for_quiet(load.quiet_s)
            runs[each.name].append(await measure(each, load))
            print(f"{repeat} {each.name}: {runs[each.name][-1]}", file=sys.stderr, flush=True)
    return runs


async def against_the_relay(site: Site, load: Load, given: argparse.Namespace) -> list[Row]:
    """The default."""
    contenders = await against_relay.contenders(site)
    if given.smg is not None:
        contenders += await smg.contenders(site, given.smg)
    return list(against_relay.rows(await in_turns(contenders, load, given.repeats)))


async def of_the_worker(site: Site, load: Load, given: argparse.Namespace) -> list[Row]:
    """`worker`."""
    contenders = await worker.contenders(site)
    return list(worker.rows(await in_turns(contenders, load, given.repeats)))


async def with_many(site: Site, load: Load, given: argparse.Namespace) -> list[Row]:
    """`many`: each set of routers is there only while it is measured."""
    return list(many.rows(await many.measure_all(site, load, given.repeats)))


WHAT = {
    "router": against_the_relay,
    "worker": of_the_worker,
    "many": with_many,
    "stretch": stretch.run,
    "latency": latency.run,
}
NAMES = {
    "router": "relay-cost",
    "worker": "relay-worker",
    "many": "relay-many",
    "stretch": "relay-stretch",
    "latency": "relay-latency",
}


async def run(given: argparse.Namespace) -> list[Row]:
    """What was asked for, in a directory that is gone afterwards."""
    load = DRY if given.dry else Load()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as children:
        site = Site(Path(directory), resolve(given.model, weights=False), children, load.step_s)
        pin(os.getpid(), site.rest)
        await site.start_tokenizer()
        return await WHAT[given.what](site, load, given)


def main() -> None:
    """Run, print the table, write the result."""
    flags = argparse.ArgumentParser(description="What a streamed token costs.")
    flags.add_argument("what", nargs="?", choices=WHAT, default="router")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--model", default="default", help="its tokenizer is what matters")
    flags.add_argument("--smg", type=Path, help="Python of an environment with smg and smg-grpc-proto")
    flags.add_argument("--dry", action="store_true", help="small, recorded under --results alone")
    flags.add_argument("--results", type=Path, help="directory of the result; unset: bench/results")
    flags.add_argument("--name", help="of the file; unset: relay-…")
    given = flags.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(given))
    where = {"results": given.results} if given.results else {}
    record(given.name or NAMES[given.what], found, PACKAGES, **where)


if __name__ == "__main__":
    main()
