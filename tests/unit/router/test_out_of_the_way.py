"""Requests that cannot go now hold up nobody: no worker is there for them, or their tenant is held back."""

from __future__ import annotations

import pytest

from services.router.policy import Cost, LatencyClass, Scheduler
from tests.support.policy_values import make_ticket, make_worker

EU = frozenset({("region", "eu")})


def placed(it: Scheduler, now: float) -> list[int]:
    found = []
    while (assignment := it.next(now)) is not None:
        found.append(assignment.ticket.number)
    return found


def with_worker(slots: int = 64) -> Scheduler:
    it = Scheduler()
    it.worker_changed(make_worker(slots=slots))
    return it


@pytest.mark.parametrize("latency_class", LatencyClass)
def test_requests_without_a_worker_hold_up_neither_others_nor_their_own_tenant(
    latency_class: LatencyClass,
) -> None:
    it = with_worker()
    for number in range(80):
        it.submit(make_ticket(number, latency_class, tenant=f"t{number % 5}", labels=EU), 0.0)
    it.submit(make_ticket(100, latency_class, tenant="other"), 1.0)
    it.submit(make_ticket(101, latency_class, tenant="t0"), 1.0)
    assert sorted(placed(it, 2.0)) == [100, 101]


def test_they_take_their_places_when_their_worker_comes_and_leave_when_it_goes() -> None:
    it = with_worker()
    europe = make_worker("eu", labels=EU)
    it.worker_changed(europe)
    it.worker_changed(make_worker("eu", labels=EU, ready=False))
    for number in range(3):
        it.submit(make_ticket(number, LatencyClass.STANDARD, labels=EU), 0.0)
    assert placed(it, 1.0) == []
    assert it.waiting_by_class()[LatencyClass.STANDARD] == it.waiting("m").foreground_requests == 3
    it.worker_changed(make_worker("eu", labels=EU, slots=1))
    assert len(placed(it, 2.0)) == 1
    it.worker_gone("eu")
    assert len(it.impatient(2.0)) == 0
    assert len(it.impatient(100.0)) == 2
    it.worker_changed(europe)
    assert len(placed(it, 101.0)) == 2
    assert len(it) == 0


def test_whom_nobody_can_serve_is_told_before_its_deadline() -> None:
    it = with_worker()
    it.submit(make_ticket(1, LatencyClass.STANDARD, labels=EU, deadline_s=3.0), 0.0)
    it.submit(make_ticket(2, LatencyClass.STANDARD, labels=EU, deadline_s=0.4), 0.0)
    assert it.impatient(0.29) == []
    assert [each.number for each in it.impatient(0.31)] == [2]
    assert [each.number for each in it.impatient(2.3)] == [1, 2]


def test_an_overdue_request_without_a_worker_is_overdue_again_when_one_comes() -> None:
    it = with_worker(slots=0)
    it.submit(make_ticket(1, LatencyClass.BATCH, labels=EU), 0.0)
    it.impatient(700.0)
    it.submit(make_ticket(2, LatencyClass.INTERACTIVE, arrival_s=700.0), 700.0)
    it.worker_changed(make_worker(labels=EU, slots=2))
    assert placed(it, 700.0) == [1, 2]


def test_tenants_that_are_held_back_hold_up_nobody() -> None:
    it = with_worker()
    for number in range(40):
        it.held_back.add(f"t{number % 4}")
        it.submit(make_ticket(number, LatencyClass.STANDARD, tenant=f"t{number % 4}"), 0.0)
    hasty = make_ticket(50, LatencyClass.STANDARD, tenant="other", do_not_queue=True)
    assert it.admit(hasty, 1.0) is None
    it.submit(hasty, 1.0)
    assert placed(it, 1.0) == [50]
    it.held_back.clear()
    assert len(placed(it, 2.0)) == 40


def test_who_was_held_back_teaches_nobody_to_expect_long_waits() -> None:
    it = with_worker(slots=0)
    it.held_back.add("held")
    for number in range(40):
        it.submit(make_ticket(number, LatencyClass.INTERACTIVE, tenant="held"), 0.0)
    it.next(59.0)
    it.held_back.clear()
    for turn in range(39):
        it.worker_changed(make_worker(slots=1))
        it.ended(placed(it, 60.0 + turn / 20)[0])
    it.worker_changed(make_worker(slots=0))
    other = make_ticket(100, LatencyClass.INTERACTIVE, tenant="other", arrival_s=62.0, deadline_s=72.0)
    assert it.admit(other, 62.0) is None


def test_the_time_between_arrivals_is_no_wait_because_something_waits_for_a_worker() -> None:
    it = with_worker()
    it.submit(make_ticket(0, LatencyClass.BATCH, labels=EU), 0.0)
    for number in range(1, 50):
        now = 20.0 * number
        it.submit(make_ticket(number, LatencyClass.STANDARD, arrival_s=now), now)
        it.ended(placed(it, now)[0])
    it.worker_changed(make_worker(slots=0))
    late = make_ticket(100, LatencyClass.STANDARD, arrival_s=1000.0, deadline_s=1005.0)
    assert it.admit(late, 1000.0) is None


def two_too_large() -> Scheduler:
    it = with_worker(slots=0)
    for number in (1, 2):
        it.submit(make_ticket(number, LatencyClass.STANDARD, f"t{number}", prompt=60_000), 0.0)
    return it


def placed_where_little_is_free(it: Scheduler, now: float) -> list[int]:
    it.worker_changed(make_worker(sequences=3, credit=Cost(100_000, 8, 100)))
    return placed(it, now)


def test_of_those_that_find_no_room_one_at_a_time_goes_where_there_is_too_little() -> None:
    it = two_too_large()
    assert placed_where_little_is_free(it, 19.0) == [], "it is not overdue for long enough"
    assert placed_where_little_is_free(it, 20.0) == [1]
    assert placed_where_little_is_free(it, 29.0) == [], "the worker is still being emptied for the first one"
    it.streamed(1, 1, 30.0)
    assert placed_where_little_is_free(it, 39.0) == [], "that took ten seconds: everybody else has as many"
    assert placed_where_little_is_free(it, 41.0) == [2]


def test_one_that_never_begins_where_there_was_too_little_does_not_keep_the_next_for_ever() -> None:
    it = two_too_large()
    assert placed_where_little_is_free(it, 20.0) == [1]
    assert placed_where_little_is_free(it, 100.0) == []
    assert placed_where_little_is_free(it, 141.0) == [2]
