"""Who goes next, and where: order, aging, credit, patience. Pure, with a clock of the test's own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import (
    Assignment,
    Cost,
    LatencyClass,
    PolicySettings,
    Scheduler,
    Ticket,
    WorkerView,
)

I, S, B = LatencyClass  # noqa: E741


def scheduler(**more: object) -> Scheduler:
    return Scheduler(PolicySettings(**more))  # type: ignore[arg-type]


def ticket(number: int, latency_class: LatencyClass = S, arrival_s: float = 0.0, **more: object) -> Ticket:
    values = {"model": "m", "tenant": "t", "cost": Cost(10, 1, 1), "total_tokens": 100} | more
    return Ticket(number=number, latency_class=latency_class, arrival_s=arrival_s, **values)  # type: ignore[arg-type]


def worker(key: str = "w", sequences: int = 8, **more: object) -> WorkerView:
    values = {
        "model": "m",
        "ready": True,
        "credit": Cost(1000, sequences, 100),
        "sequences": 0,
        "waiting_tokens": 0,
        "max_sequences": 8,
        "max_tokens": 1000,
        "total_blocks": 100,
    } | more
    return WorkerView(key=key, **values)  # type: ignore[arg-type]


def drained(it: Scheduler, now: float) -> list[Assignment]:
    found = []
    while (assignment := it.next(now)) is not None:
        found.append(assignment)
    return found


def numbers(it: Scheduler, now: float) -> list[int]:
    return [each.ticket.number for each in drained(it, now)]


def test_classes_go_in_order_of_urgency() -> None:
    it = scheduler()
    for number, latency_class in enumerate((B, S, I)):
        it.submit(ticket(number, latency_class, arrival_s=float(number)))
    it.worker_changed(worker())
    assert numbers(it, 3.0) == [2, 1, 0]


def test_an_overdue_request_goes_before_fresh_ones_of_any_class() -> None:
    it = scheduler()
    it.submit(ticket(1, S, arrival_s=0.0))
    it.submit(ticket(2, I, arrival_s=10.5))
    it.submit(ticket(3, B, arrival_s=-700.0))
    it.worker_changed(worker())
    assert numbers(it, 10.5) == [3, 1, 2]


def test_batch_with_a_long_deadline_ages_by_a_quarter_of_it() -> None:
    for now, first in ((8_999.0, 2), (9_001.0, 1)):
        it = scheduler()
        it.submit(ticket(1, B, arrival_s=0.0, deadline_s=36_000.0))
        it.submit(ticket(2, I, arrival_s=8_998.0))
        it.worker_changed(worker())
        assert numbers(it, now)[0] == first


def test_a_request_that_comes_back_keeps_its_place() -> None:
    it = scheduler()
    it.worker_changed(worker(sequences=1))
    it.submit(ticket(1, I, arrival_s=0.0))
    it.submit(ticket(2, I, arrival_s=1.0))
    first = it.next(2.0)
    assert first is not None
    assert first.ticket.number == 1
    it.submit(ticket(3, I, arrival_s=1.5))
    it.submit(first.ticket)
    it.worker_changed(worker())
    assert numbers(it, 3.0) == [1, 2, 3]


def test_nothing_goes_without_credit() -> None:
    it = scheduler()
    it.submit(ticket(1))
    it.worker_changed(worker(sequences=0))
    assert it.next(0.0) is None
    it.worker_changed(worker(sequences=1))
    assert it.next(0.0) is not None


def test_a_prompt_beyond_the_window_goes_while_the_window_is_open() -> None:
    it = scheduler()
    it.submit(ticket(1, cost=Cost(5000, 1, 80)))
    it.submit(ticket(2, arrival_s=1.4))
    it.worker_changed(worker())
    assert numbers(it, 1.4) == [1], "and then the window is closed"


def test_a_request_for_more_blocks_than_are_free_waits_while_others_go() -> None:
    it = scheduler()
    it.submit(ticket(1, cost=Cost(10, 1, 101)))
    it.submit(ticket(2))
    it.worker_changed(worker(sequences=4, **{"credit": Cost(1000, 4, 100)}))
    view = worker(credit=Cost(1000, 4, 100))
    view.sequences = 2
    it.worker_changed(view)
    assert numbers(it, 0.0) == [2]


def test_the_least_loaded_worker_takes_the_request() -> None:
    it = scheduler()
    busy, idle = worker("busy"), worker("idle")
    busy.sequences = 3
    it.worker_changed(busy)
    it.worker_changed(idle)
    it.submit(ticket(1))
    assert [each.worker for each in drained(it, 0.0)] == ["idle"]


def test_equal_workers_take_turns() -> None:
    it = scheduler()
    for key in ("a", "b", "c"):
        it.worker_changed(worker(key))
    for number in range(6):
        it.submit(ticket(number))
    assert sorted(each.worker for each in drained(it, 0.0)) == ["a", "a", "b", "b", "c", "c"]


def test_labels_capabilities_length_and_bars_restrict_the_choice() -> None:
    it = scheduler()
    eu = frozenset({("region", "eu")})
    it.worker_changed(worker("plain"))
    it.worker_changed(worker("right", labels=eu, capabilities=frozenset({"grammar"}), max_tokens=2000))
    wanted = (
        ticket(1, labels=eu),
        ticket(2, capabilities=frozenset({"grammar"})),
        ticket(3, total_tokens=1500),
        ticket(4, barred=frozenset({"plain"})),
    )
    for each in wanted:
        it.submit(each)
    assert {each.worker for each in drained(it, 0.0)} == {"right"}


def test_patience_ends_only_where_no_worker_could_run_it() -> None:
    it = scheduler()
    it.submit(ticket(1, I))
    it.submit(ticket(2, S))
    it.submit(ticket(3, B))
    assert it.impatient(100.0) == []
    assert [each.number for each in it.impatient(105.0)] == [1]
    it.worker_changed(worker(sequences=0))
    assert it.impatient(1000.0) == []
    it.worker_gone("w")
    assert it.impatient(1000.0) == []
    assert sorted(each.number for each in it.impatient(1030.0)) == [1, 2]


def test_what_was_removed_is_gone() -> None:
    it = scheduler()
    it.submit(ticket(1))
    assert it.remove(1) is not None
    assert it.remove(1) is None
    it.worker_changed(worker())
    assert it.next(0.0) is None
    assert it.waiting("m").requests == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(LatencyClass)), st.floats(0, 2000), st.integers(0, 50)), max_size=40
    ),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
)
def test_everything_goes_once_within_credit(
    wanted: list[tuple[LatencyClass, float, int]], credits: list[int]
) -> None:
    it = scheduler()
    for number, (latency_class, arrival_s, tokens) in enumerate(wanted):
        it.submit(ticket(number, latency_class, arrival_s, cost=Cost(tokens, 1, 1)))
    for index, sequences in enumerate(credits):
        it.worker_changed(worker(f"w{index}", sequences))
    found = drained(it, 2000.0)
    assert len({each.ticket.number for each in found}) == len(found)
    for index, sequences in enumerate(credits):
        assert sum(each.worker == f"w{index}" for each in found) <= sequences
    rest = len(wanted) - len(found)
    assert len(it) == rest == it.waiting("m").requests
    assert it.waiting("m").prefill_tokens == sum(each.cost.prefill_tokens for each in it.tickets())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.floats(0.5, 2.0))
def test_a_batch_request_goes_in_the_end_under_a_flood_of_urgent_ones(count: int, gap: float) -> None:
    it = scheduler()
    it.submit(ticket(0, B, arrival_s=0.0))
    number, now = 0, 0.0
    while now < 600 + count * gap + 1:
        number, now = number + 1, now + gap
        it.submit(ticket(number, I, arrival_s=now))
        it.worker_changed(worker(sequences=1))
        assignment = it.next(now)
        assert assignment is not None
        if assignment.ticket.number == 0:
            return
    raise AssertionError("the batch request starved")
