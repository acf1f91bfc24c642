"""Requests whose workers are all full stand in nobody's way to other workers."""

from __future__ import annotations

import pytest

from services.router.policy import Cost, LatencyClass, Scheduler
from tests.support.policy_values import make_ticket, make_worker

I, S, B = LatencyClass  # noqa: E741
WANTED = frozenset({("hardware", "h200")})
FULL = Cost(0, 0, 0)


def crowded(tenants: int, of_each: int, latency_class: LatencyClass) -> Scheduler:
    scheduler = Scheduler()
    scheduler.worker_changed(make_worker("full", credit=FULL, sequences=8, labels=WANTED))
    scheduler.worker_changed(make_worker("idle"))
    for number in range(tenants * of_each):
        tenant = f"t{number % tenants}"
        scheduler.submit(make_ticket(number, latency_class, tenant=tenant, labels=WANTED))
    return scheduler


@pytest.mark.parametrize("latency_class", [I, S, B])
@pytest.mark.parametrize(("tenants", "of_each"), [(1, 20), (6, 20), (40, 3)])
def test_a_request_goes_to_an_idle_worker_past_those_that_wait_for_others(
    latency_class: LatencyClass, tenants: int, of_each: int
) -> None:
    scheduler = crowded(tenants, of_each, latency_class)
    scheduler.submit(make_ticket(999, latency_class, tenant="t0", arrival_s=0.1))
    scheduler.submit(make_ticket(1000, latency_class, tenant="light", arrival_s=0.1))
    for now in (0.2, 5.0):
        assigned = scheduler.next(now)
        assert assigned is not None
        assert assigned.worker == "idle"


def test_those_that_wait_go_first_when_one_of_theirs_takes_something() -> None:
    scheduler = crowded(2, 5, S)
    scheduler.submit(make_ticket(99, S, tenant="light", arrival_s=0.1))
    assert scheduler.next(0.2) is not None
    assert scheduler.next(0.2) is None
    scheduler.worker_changed(make_worker("full", labels=WANTED, slots=1))
    assigned = scheduler.next(0.2)
    assert assigned is not None
    assert (assigned.worker, assigned.ticket.labels) == ("full", WANTED)
