"""Foreground requests may have what batch work holds; batch work has its own credit alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.router.policy import Cost, LatencyClass, PolicySettings, Scheduler, Ticket, WorkerView


def ticket(number: int, latency_class: LatencyClass) -> Ticket:
    return Ticket(
        number=number,
        model="m",
        tenant="t",
        latency_class=latency_class,
        cost=Cost(10, 1, 2),
        total_tokens=100,
        arrival_s=0.0,
    )


def view(credit: Cost, foreground: Cost | None) -> WorkerView:
    return WorkerView(
        key="w",
        model="m",
        ready=True,
        credit=credit,
        foreground_credit=foreground,
        sequences=4,
        waiting_tokens=0,
        max_sequences=64,
        max_tokens=1000,
        total_blocks=100,
    )


@pytest.mark.parametrize("latency_class", [LatencyClass.INTERACTIVE, LatencyClass.STANDARD])
def test_a_worker_full_of_batch_work_takes_foreground_requests_only(latency_class: LatencyClass) -> None:
    scheduler = Scheduler(PolicySettings())
    scheduler.worker_changed(view(Cost(0, 0, 0), Cost(1000, 2, 10)))
    scheduler.submit(ticket(1, LatencyClass.BATCH), 0.0)
    scheduler.submit(ticket(2, latency_class), 0.0)
    first = scheduler.next(0.0)
    assert first is not None
    assert first.ticket.number == 2
    assert scheduler.next(0.0) is None


def test_foreground_bookings_take_of_both_credits_and_batch_of_one() -> None:
    it = view(Cost(100, 3, 30), Cost(200, 5, 50))
    it.book(Cost(10, 1, 2), foreground=True)
    it.book(Cost(10, 1, 2), foreground=False)
    assert it.credit == Cost(80, 1, 26)
    assert it.foreground_credit == Cost(190, 4, 48)


def test_what_lacks_blocks_of_its_own_credit_waits() -> None:
    it = view(Cost(100, 3, 1), Cost(100, 3, 50))
    assert it.affords(Cost(10, 1, 2), foreground=True)
    assert not it.affords(Cost(10, 1, 2))


@pytest.mark.parametrize(
    ("latency_class", "chosen"), [(LatencyClass.STANDARD, "bulk"), (LatencyClass.BATCH, "chat")]
)
def test_foreground_requests_do_not_mind_batch_work(latency_class: LatencyClass, chosen: str) -> None:
    credit = Cost(1000, 8, 50)
    busy = replace(view(credit, credit), waiting_tokens=500)
    scheduler = Scheduler(PolicySettings())
    scheduler.worker_changed(replace(busy, key="chat", sequences=2))
    scheduler.worker_changed(
        replace(busy, key="bulk", sequences=9, batch_sequences=9, batch_waiting_tokens=500)
    )
    scheduler.submit(ticket(1, latency_class), 0.0)
    found = scheduler.next(0.0)
    assert found is not None
    assert found.worker == chosen


def test_a_booked_batch_request_is_no_load_to_the_foreground() -> None:
    it = view(Cost(100, 3, 30), Cost(200, 5, 50))
    it.book(Cost(10, 1, 2), foreground=False)
    it.book(Cost(20, 1, 2), foreground=True)
    assert (it.sequences, it.batch_sequences) == (6, 1)
    assert (it.waiting_tokens, it.batch_waiting_tokens) == (30, 10)
