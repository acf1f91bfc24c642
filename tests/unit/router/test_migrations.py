"""Moved requests: so many at a time, the foreground and the oldest first, suspects singly, nobody lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.router.continuity.migrations import PASSING_S, Migrations, Room
from services.router.policy import LatencyClass
from services.router.relay.attempt import Blame
from services.router.relay.flight import Flight
from tests.support.flights import flight

INTERACTIVE, BATCH = LatencyClass.INTERACTIVE, LatencyClass.BATCH


TOKENS = 3
"""Of each request's prompt; nothing has been made yet."""


def moved(number: int, arrival_s: float = 0.0, latency_class: LatencyClass = INTERACTIVE) -> Flight:
    return flight(number=number, arrival_s=arrival_s, latency_class=latency_class)


def numbers(migrations: Migrations, workers: int, now: float = 0.0) -> list[int]:
    """Who goes when a prompt takes a second."""
    room = Room(workers, 1 / TOKENS)
    return [each.order.number for each in migrations.release("m", room, now)]


async def test_so_many_a_worker_go_at_once_and_each_arrival_makes_room_for_one() -> None:
    migrations = Migrations(2)
    flights = [moved(number, arrival_s=number) for number in range(6)]
    for each in flights:
        migrations.add(each)
    assert numbers(migrations, workers=2) == [0, 1, 2, 3]
    assert numbers(migrations, workers=2) == []
    migrations.discard(flights[1])
    assert numbers(migrations, workers=2) == [4]


async def test_short_streams_all_go_at_once_and_a_long_one_takes_the_room_of_many() -> None:
    migrations = Migrations(1)
    for number in range(5):
        migrations.add(moved(number, arrival_s=number))
    assert len(list(migrations.release("m", Room(1, 0.2 / TOKENS), 0.0))) == 5
    long = moved(9)
    long.ids.extend(range(100))
    migrations.add(long)
    migrations.add(moved(10, arrival_s=99.0))
    later = PASSING_S * 1.01
    assert [each.order.number for each in migrations.release("m", Room(1, 0.2 / TOKENS), later)] == [9]


async def test_the_foreground_goes_before_batch_work_and_the_oldest_first() -> None:
    migrations = Migrations(1)
    for each in (moved(1, 1.0, BATCH), moved(2, 9.0), moved(3, 5.0)):
        migrations.add(each)
    assert numbers(migrations, workers=3) == [3, 2, 1]


async def test_what_nobody_can_take_holds_up_the_others_for_a_bounded_time() -> None:
    migrations = Migrations(1)
    migrations.add(moved(1))
    assert numbers(migrations, workers=1) == [1]
    migrations.add(moved(2))
    assert numbers(migrations, workers=1, now=PASSING_S / 2) == []
    assert numbers(migrations, workers=1, now=PASSING_S * 1.01) == [2]


async def test_without_workers_all_go_to_the_queue_and_its_patience() -> None:
    migrations = Migrations(1)
    for number in range(5):
        migrations.add(moved(number))
    assert len(numbers(migrations, workers=0)) == 5
    assert not migrations


async def test_suspects_go_one_by_one_and_hold_up_nobody_else() -> None:
    migrations = Migrations(8)
    flights = [moved(number, arrival_s=number) for number in range(4)]
    for each in flights[:2]:
        each.lose_worker(Blame.SUSPECTED, resumes=2)
    for each in flights:
        migrations.add(each)
    assert numbers(migrations, workers=1) == [0, 2, 3]
    migrations.discard(flights[0])
    assert numbers(migrations, workers=1) == [1]


async def test_what_ends_while_it_waits_is_not_moved() -> None:
    migrations = Migrations(1)
    it = moved(1)
    migrations.add(it)
    migrations.discard(it)
    assert numbers(migrations, workers=1) == []


@given(
    most=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["add", "arrive", "time"]), st.integers(0, 4)), max_size=60),
)
async def test_no_moved_request_is_lost_or_released_twice(most: int, steps: list[tuple[str, int]]) -> None:
    migrations, now = Migrations(most), 0.0
    added: list[Flight] = []
    released: list[int] = []
    passing: dict[int, float] = {}
    for kind, value in steps:
        if kind == "add":
            added.append(moved(len(added), arrival_s=value))
            migrations.add(added[-1])
        elif kind == "arrive" and passing:
            number = sorted(passing)[value % len(passing)]
            del passing[number]
            migrations.discard(added[number])
        else:
            now += value
        passing = {number: since for number, since in passing.items() if now - since <= PASSING_S}
        fresh = numbers(migrations, workers=2, now=now)
        passing |= dict.fromkeys(fresh, now)
        released += fresh
        assert len(passing) <= 2 * most
    assert len(released) == len(set(released))
    now += 1e3
    while migrations:
        now += 1e3
        released += numbers(migrations, workers=2, now=now)
    assert sorted(released) == list(range(len(added)))
