"""Batch work gives way to interactive requests: who, when, how often; nothing is lost or charged."""

from __future__ import annotations

from services.router.policy import Cost, LatencyClass, PolicySettings, Scheduler
from tests.support.policy_values import make_ticket, make_worker

I, S, B = LatencyClass  # noqa: E741


def full_of_batch(slots: int = 3, **more: object) -> Scheduler:
    """A worker whose slots are all taken by batch requests 0, 1, 2, …"""
    it = Scheduler(PolicySettings(**more))  # type: ignore[arg-type]
    it.worker_changed(make_worker("w", slots))
    for number in range(slots):
        it.submit(make_ticket(number, B, prompt=1000 * (number + 1)), 0.0)
        assert it.next(0.0) is not None
    closed = make_worker("w", 0)
    closed.sequences = slots
    it.worker_changed(closed)
    return it


def test_the_request_with_the_least_progress_gives_way_after_its_residency() -> None:
    it = full_of_batch()
    it.streamed(0, 5, 0.5)
    it.submit(make_ticket(9, I, arrival_s=0.5), 0.5)
    assert it.give_way(0.9) == [], "each has its least time on the worker"
    assert [(each.number, each.begun) for each in it.give_way(1.1)] in ([(1, False)], [(2, False)])
    assert it.give_way(1.2) == [], "one request waits, one leaves"


def test_of_those_that_have_begun_the_one_that_costs_least_again_is_paused() -> None:
    it = full_of_batch()
    for number, tokens in ((0, 900), (1, 10), (2, 10)):
        it.streamed(number, tokens, 0.5)
    it.submit(make_ticket(9, I, arrival_s=1.0), 1.0)
    found = it.give_way(2.0)
    assert [(each.number, each.begun) for each in found] == [(0, True)], (
        "1,900 tokens against 2,010 and 3,010"
    )


def test_a_victim_keeps_its_place_and_is_not_charged() -> None:
    it = full_of_batch(2)
    before = it.counter("m", "t", B)
    it.submit(make_ticket(7, B, prompt=10, arrival_s=0.2), 0.2)
    it.submit(make_ticket(9, I, arrival_s=0.5), 0.5)
    [gone] = it.give_way(2.0)
    it.submit(make_ticket(gone.number, B, prompt=1000 * (gone.number + 1)), 2.0)
    assert it.counter("m", "t", B) == before - 1000 * (gone.number + 1)
    it.worker_changed(make_worker("w", 1))
    first = it.next(2.0)
    assert first is not None
    assert first.ticket.number == 9
    it.worker_changed(make_worker("w", 2))
    order = [assignment.ticket.number for _ in range(2) if (assignment := it.next(2.0)) is not None]
    assert order == [gone.number, 7], "it came first, and it is first again"


def test_a_request_gives_way_only_so_often() -> None:
    it = full_of_batch(1)
    now = 2.0
    for urgent in (10, 11):
        it.submit(make_ticket(urgent, I, arrival_s=now), now)
        now += 2.0
        found = it.give_way(now)
        if urgent == 11:
            assert found == []
            return
        it.submit(make_ticket(0, B, prompt=1000), now)
        it.worker_changed(make_worker("w", 2))
        assert {a.ticket.number for _ in range(2) if (a := it.next(now)) is not None} == {0, 10}
        it.worker_changed(make_worker("w", 0))
    raise AssertionError("not reached")


def test_nothing_gives_way_while_something_is_open_or_only_batch_work_waits() -> None:
    it = full_of_batch()
    it.submit(make_ticket(9, B, arrival_s=0.5), 0.5)
    it.submit(make_ticket(10, S, arrival_s=0.5), 0.5)
    assert it.give_way(5.0) == []
    it.worker_changed(make_worker("other", 4))
    it.submit(make_ticket(11, I, arrival_s=5.0), 5.0)
    assert it.give_way(9.0) == []


def test_interactive_and_standard_requests_never_give_way() -> None:
    it = Scheduler()
    it.worker_changed(make_worker("w", 2))
    for number, latency_class in ((1, I), (2, S)):
        it.submit(make_ticket(number, latency_class), 0.0)
        assert it.next(0.0) is not None
    it.worker_changed(make_worker("w", 0))
    it.submit(make_ticket(9, I, arrival_s=1.0), 1.0)
    assert it.give_way(9.0) == []


def test_as_many_leave_as_the_blocks_need_and_none_when_that_would_not_do() -> None:
    for blocks, leave in ((30, 2), (300, 0)):
        it = Scheduler()
        it.worker_changed(make_worker("w", 3, credit=Cost(100_000, 3, 50)))
        for number in range(3):
            it.submit(make_ticket(number, B, prompt=900), 0.0)  # 15 blocks each
            assert it.next(0.0) is not None
        view = make_worker("w", credit=Cost(100_000, 5, 5))
        view.sequences = 3
        it.worker_changed(view)
        it.submit(make_ticket(9, I, prompt=64 * (blocks - 1), arrival_s=0.0), 0.0)
        assert len(it.give_way(5.0)) == leave


def test_it_can_be_switched_off() -> None:
    it = full_of_batch(preemption=False)
    it.submit(make_ticket(9, I, arrival_s=0.5), 0.5)
    assert it.give_way(9.0) == []


def test_nothing_is_displaced_where_the_worker_makes_room_by_itself() -> None:
    it = full_of_batch()
    view = make_worker("w", 0, foreground_credit=Cost(0, 0, 0))
    view.sequences = 3
    it.worker_changed(view)
    it.submit(make_ticket(9, I, arrival_s=0.5), 0.5)
    assert it.give_way(9.0) == []
