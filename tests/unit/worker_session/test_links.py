"""Which routers a worker attaches to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from headrace.v1 import session_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.common.lifecycle import Tasks
from services.worker.session.links import MOST_ROUTERS, Links, Told, choose


def addresses(count: int) -> list[str]:
    return [f"10.0.0.{each}:50061" for each in range(count)]


@given(st.integers(0, 4))
def test_up_to_four_are_all_chosen(count: int) -> None:
    assert choose("w", addresses(count)) == set(addresses(count))


@given(st.text(min_size=1), st.integers(5, 30), st.integers(0, 29))
def test_beyond_four_a_router_that_goes_moves_nobody_else(worker: str, count: int, gone: int) -> None:
    before = choose(worker, addresses(count))
    assert len(before) == MOST_ROUTERS
    left = [each for index, each in enumerate(addresses(count)) if index != gone % count]
    after = choose(worker, left)
    assert before - {addresses(count)[gone % count]} <= after


def test_workers_spread_over_routers() -> None:
    chosen = [address for worker in range(200) for address in choose(f"worker-{worker}", addresses(16))]
    counts = [chosen.count(address) for address in addresses(16)]
    assert sum(counts) == 800
    assert min(counts) > 20


class FakeLink:
    """Opens and ends when the test says so."""

    def __init__(self, address: str, told: Told) -> None:
        self.address, self.router_id, self.session = address, "", None
        self.left = False
        self._told = told

    async def run(self) -> None:
        await asyncio.Event().wait()

    def leave(self) -> None:
        self.left = True

    def open(self, router_id: str, siblings: list[str]) -> None:
        self.router_id, self.session = router_id, object()  # type: ignore[assignment]
        self._told(self, pb.Welcome(router_id=router_id, siblings=siblings))  # type: ignore[arg-type]

    def end(self) -> None:
        self.session = None
        self._told(self, None)  # type: ignore[arg-type]


class Bench:
    def __init__(self, tasks: Tasks, *configured: str) -> None:
        self.dialled: dict[str, FakeLink] = {}
        self.links = Links("worker", configured, self.dial, tasks)
        self.links.start()

    def dial(self, address: str, told: Told) -> Any:
        self.dialled[address] = FakeLink(address, told)
        return self.dialled[address]

    @property
    def kept(self) -> set[str]:
        return {address for address, link in self.dialled.items() if not link.left}


@pytest_asyncio.fixture
async def tasks() -> AsyncIterator[Tasks]:
    owned = Tasks()
    yield owned
    await owned.cancel()


async def test_siblings_named_in_welcome_are_dialled(tasks: Tasks) -> None:
    bench = Bench(tasks, "a:1")
    bench.dialled["a:1"].open("A", ["a:1", "b:1", "c:1"])
    assert bench.kept == {"a:1", "b:1", "c:1"}
    assert bench.links.open == 1


async def test_a_sibling_that_is_gone_is_left_alone(tasks: Tasks) -> None:
    bench = Bench(tasks, "a:1")
    bench.dialled["a:1"].open("A", ["a:1", "b:1"])
    bench.dialled["a:1"].open("A", ["a:1", "c:1"])
    assert bench.kept == {"a:1", "c:1"}


async def test_a_configured_router_is_dialled_for_ever(tasks: Tasks) -> None:
    bench = Bench(tasks, "a:1", "b:1")
    bench.dialled["a:1"].open("A", ["a:1"])
    assert bench.kept == {"a:1", "b:1"}


async def test_a_router_reached_under_two_names_keeps_its_newest_session(tasks: Tasks) -> None:
    bench = Bench(tasks, "router:1")
    bench.dialled["router:1"].open("A", ["10.0.0.1:1"])
    assert bench.kept == {"router:1", "10.0.0.1:1"}
    bench.dialled["10.0.0.1:1"].open("A", ["10.0.0.1:1"])
    assert bench.kept == {"10.0.0.1:1"}
    assert bench.dialled["router:1"].left


async def test_beyond_four_routers_only_the_chosen_ones_stay(tasks: Tasks) -> None:
    siblings = addresses(9)
    chosen = choose("worker", siblings)
    seed = next(address for address in siblings if address not in chosen)
    bench = Bench(tasks, seed)
    bench.dialled[seed].open("seed", siblings)
    assert bench.kept == {seed, *chosen}
    first = next(iter(chosen))
    bench.dialled[first].open("first", siblings)
    assert bench.kept == chosen


async def test_every_change_is_told(tasks: Tasks) -> None:
    bench = Bench(tasks, "a:1")
    bench.dialled["a:1"].open("A", [])
    assert bench.links.changed.is_set()
    bench.links.changed.clear()
    bench.dialled["a:1"].end()
    assert bench.links.changed.is_set()
    assert bench.links.open == 0
