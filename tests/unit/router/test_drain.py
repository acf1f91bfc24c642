"""Whether a deadline can be met follows from the work that waits and how fast it goes."""

from __future__ import annotations

import pytest

from services.router.policy import Cost, LatencyClass, PolicySettings, RefusalKind, Scheduler
from services.router.policy.drain import Drain, Rate
from services.router.policy.queue import ModelQueue
from services.router.policy.speed import StepModel
from tests.support.policy_values import make_ticket, make_worker

I, S, B = LatencyClass  # noqa: E741


def queue_of(count: int, *, late: int = 0, tenant: str = "t") -> ModelQueue:
    """Requests of one GPU second each, the first of which have missed their targets."""
    queue = ModelQueue(PolicySettings())
    for number in range(count):
        ticket = make_ticket(number, I, tenant=tenant, arrival_s=-10.0 if number < late else 0.0)
        queue.add(ticket, 0.01, 1.0, 0.0)
    list(queue.candidates(0.0))
    return queue


def test_a_rate_is_work_over_the_time_in_which_others_waited() -> None:
    rate = Rate()
    for turn in range(1000):
        rate.went(0.5, turn * 0.25, others_wait=True)
    assert rate.of_all(9.0, 250.0) == pytest.approx(2.0, rel=0.2)
    rate.went(0.5, 250.0, others_wait=False)
    assert rate.of_all(2.0, 260.0) == pytest.approx(2.0, rel=0.05), "nobody waited in that pause"


def test_before_anything_was_seen_and_long_after_the_rate_is_the_usual_one() -> None:
    rate = Rate()
    assert rate.of_all(7.0, 0.0) == 7.0
    for turn in range(100):
        rate.went(0.5, float(turn), others_wait=turn < 99)
    assert rate.of_all(7.0, 99.0) < 1.0
    assert rate.of_all(7.0, 400.0) == pytest.approx(7.0, rel=0.01)


def test_an_outage_is_forgotten_though_nobody_waits_after_it() -> None:
    rate = Rate()
    for now in (0.0, 1.0, 3600.0):
        rate.went(1.0, now, others_wait=now < 3600.0)
    assert rate.of_all(10.0, 3600.0) < 1.0
    assert rate.of_all(10.0, 3660.0) > 4.0


def test_the_late_have_the_part_that_is_theirs_however_few_of_them_went() -> None:
    rate = Rate()
    for turn in range(100):
        rate.went(1.0, turn * 0.1, late=turn == 0, others_wait=True)
    assert rate.of_late(10.0, 10.0, least=0.1) == pytest.approx(0.1 * rate.of_all(10.0, 10.0), rel=0.01)


def test_who_is_in_time_waits_for_those_in_time_alone() -> None:
    queue, drain = queue_of(60, late=50), Drain(0.01)
    ticket = make_ticket(99, I, tenant="t")
    assert drain.wait_s(ticket, queue, 0.0, usual=100.0, in_time_s=0.45) == pytest.approx(0.1)


def test_who_will_be_late_waits_for_all_at_the_rate_of_the_late() -> None:
    queue, drain = queue_of(60, late=50), Drain(0.01)
    ticket = make_ticket(99, I, tenant="t")
    for turn in range(400):
        drain.went(1.0, turn * 0.1, late=turn % 10 == 0, others_wait=True)
    assert drain.wait_s(ticket, queue, 40.0, usual=10.0, in_time_s=0.1) == pytest.approx(60.0, rel=0.1)
    assert drain.wait_s(ticket, queue, 40.0, usual=10.0, in_time_s=None) == pytest.approx(6.0, rel=0.1)


def test_the_less_sure_a_request_is_in_time_the_longer_it_is_taken_to_wait() -> None:
    queue, drain = queue_of(60, late=50), Drain(0.1)
    for turn in range(400):
        drain.went(1.0, turn * 0.1, late=False, others_wait=True)
    waits = [
        drain.wait_s(make_ticket(99, I), queue, 40.0, usual=10.0, in_time_s=may_s)
        for may_s in (2.1, 2.05, 1.5, 1.1, 1.0, 0.1)
    ]
    assert waits[:2] == [pytest.approx(1.0, rel=0.01)] * 2
    assert waits == sorted(waits)
    assert waits[-2:] == [pytest.approx(60.0, rel=0.01)] * 2


def test_until_it_was_seen_how_they_go_the_late_go_as_fast_as_all() -> None:
    queue, drain, ticket = queue_of(60, late=50), Drain(0.1), make_ticket(99, I)
    assert drain.wait_s(ticket, queue, 0.0, usual=10.0, in_time_s=0.1) == pytest.approx(6.0)
    for turn in range(31):
        drain.went(1.0, turn * 0.1, late=False, others_wait=True)
    assert drain.wait_s(ticket, queue, 3.0, usual=10.0, in_time_s=0.1) == pytest.approx(41.0, rel=0.1)


def test_a_tenant_waits_for_its_own_requests_as_often_as_others_have_a_turn() -> None:
    queue, drain = queue_of(50, tenant="busy"), Drain(0.1)
    queue.add(make_ticket(100, I, tenant="light"), 0.01, 1.0, 0.0)
    assert drain.wait_s(make_ticket(101, I, tenant="light"), queue, 0.0, usual=1.0, in_time_s=None) == 2.0
    assert drain.wait_s(make_ticket(102, I, tenant="new"), queue, 0.0, usual=1.0, in_time_s=None) == 0.0


def test_what_cannot_be_met_is_refused_at_once_though_those_that_went_had_not_waited() -> None:
    """Twice as much is asked for as is served: fresh requests go, late ones wait until they are ended."""
    scheduler = Scheduler(PolicySettings())
    kinds = []
    for number in range(4000):
        now = number * 0.01
        scheduler.worker_changed(make_worker("w", credit=Cost(8000, number % 2, 1000)))
        ticket = make_ticket(number, I, arrival_s=now, deadline_s=now + 4.0)
        refusal = scheduler.admit(ticket, now)
        if refusal is None:
            scheduler.submit(ticket, now)
        else:
            kinds.append(refusal.kind)
        while (assignment := scheduler.next(now)) is not None:
            scheduler.ended(assignment.ticket.number)
        scheduler.ended(number - 400)
    assert kinds.count(RefusalKind.DEADLINE_INFEASIBLE) > 1000


def test_a_burst_at_an_idle_mesh_that_is_slow_is_let_in() -> None:
    """All of it fits its deadline, though hardly any of it the target of its class."""
    scheduler = Scheduler(PolicySettings())
    slow = StepModel(a=0.02, b=2e-4, c=1e-8, d=5e-7, e=1e-3)
    scheduler.worker_changed(make_worker("w", credit=Cost(2048, 64, 10_000), step_model=slow))
    for number in range(32):
        ticket = make_ticket(number, I, prompt=112, expected_output=200, deadline_s=60.0)
        assert scheduler.admit(ticket, 0.0) is None
        scheduler.submit(ticket, 0.0)
        while scheduler.next(0.0) is not None:
            pass
    assert scheduler.waiting("m").requests > 0, "else nothing was decided"
