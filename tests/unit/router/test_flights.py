"""Requests are told of their deadlines by one timer, whatever comes and goes meanwhile."""

from __future__ import annotations

import time

from services.router.flights import FEW, Flights
from services.router.relay.flight import Flight
from tests.support.flights import flight
from tests.support.waiting import eventually

SOON_S, LATER_S, LATE_S = 0.01, 0.02, 60.0


class Held:
    """Requests, and whose deadlines passed."""

    def __init__(self) -> None:
        self.passed: list[int] = []
        self.flights = Flights(lambda it: self.passed.append(it.order.number))

    def hold(self, number: int, left_s: float | None) -> Flight:
        deadline_s = None if left_s is None else time.monotonic() + left_s
        it = flight(number=number, deadline_s=deadline_s)
        self.flights.hold(it)
        return it


async def test_each_is_told_of_its_deadline_once_and_the_first_first() -> None:
    held = Held()
    held.hold(1, None)
    held.hold(2, LATE_S)
    held.hold(3, LATER_S)
    held.hold(4, SOON_S)
    await eventually(lambda: len(held.passed) >= 2, "both deadlines passed")
    assert held.passed == [4, 3]
    held.hold(5, 0.0)
    await eventually(lambda: len(held.passed) >= 3, "one that had passed before")
    assert held.passed == [4, 3, 5]


async def test_who_has_ended_is_not_told() -> None:
    held = Held()
    gone = [held.hold(1, SOON_S), held.hold(2, LATER_S)]
    held.hold(3, 2 * LATER_S)
    for it in gone:
        held.flights.forget(it)
    await eventually(lambda: bool(held.passed), "the last is told")
    assert held.passed == [3]


async def test_deadlines_of_those_that_have_ended_do_not_heap_up() -> None:
    held = Held()
    held.hold(0, LATE_S)
    for number in range(1, 4 * FEW):
        held.flights.forget(held.hold(number, LATE_S))
    assert len(held.flights._deadlines) <= 2 * len(held.flights) + FEW
    held.hold(4 * FEW, SOON_S)
    await eventually(lambda: bool(held.passed), "the timer is still set for the first")
    assert held.passed == [4 * FEW]
