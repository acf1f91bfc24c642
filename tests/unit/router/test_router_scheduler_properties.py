"""Whatever happens in whatever order: no request is lost, doubled or starved; nonsense hurts nobody else."""

from __future__ import annotations

import random
from collections import Counter
from math import inf, isfinite, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.router.policy import (
    Assignment,
    Cost,
    LatencyClass,
    PolicySettings,
    Scheduler,
    Ticket,
    WorkerView,
)
from services.router.policy.speed import StepModel

I, S, B = LatencyClass  # noqa: E741
FAST = StepModel(2e-3, 2e-5, 1e-10, 1e-8, 1e-5)


def ticket(number: int, latency_class: LatencyClass = S, tenant: str = "t", **more: object) -> Ticket:
    prompt = int(str(more.pop("prompt", 100)))
    values = {"arrival_s": 0.0, "expected_output": 20, "model": "m"} | more
    cost = Cost(prompt, 1, 1 + prompt // 64)
    return Ticket(
        number=number,
        tenant=tenant,
        latency_class=latency_class,
        cost=cost,
        total_tokens=prompt + 100,
        **values,  # type: ignore[arg-type]
    )


def worker(key: str = "w", sequences: int = 8, **more: object) -> WorkerView:
    values = {
        "model": "m",
        "ready": True,
        "credit": Cost(100_000, sequences, 10_000),
        "sequences": 0,
        "waiting_tokens": 0,
        "max_sequences": 64,
        "max_tokens": 100_000,
        "total_blocks": 10_000,
        "free_blocks": 10_000,
        "step_model": FAST,
    } | more
    return WorkerView(key=key, **values)  # type: ignore[arg-type]


class Life(RuleBasedStateMachine):
    """Requests come, go to workers, come back, end; workers come and go; the clock goes where it wants."""

    def __init__(self) -> None:
        super().__init__()
        self.it = Scheduler(PolicySettings(residency_s=0.0, preempt_after_s=0.0))
        self.now = 1000.0
        self.waiting: dict[int, Ticket] = {}
        self.seated: dict[int, Ticket] = {}
        self.there: set[str] = set()

    @rule(
        latency_class=st.sampled_from(list(LatencyClass)),
        tenant=st.sampled_from("abc"),
        prompt=st.sampled_from([1, 63, 700, 30_000]),
        model=st.sampled_from("mn"),
        deadline_s=st.sampled_from([None, -5.0, 1.0, 1e6, inf]),
        weight=st.sampled_from([-1.0, 0.0, 1e-9, 1.0, 1000.0, nan]),
    )
    def comes(
        self,
        latency_class: LatencyClass,
        tenant: str,
        prompt: int,
        model: str,
        deadline_s: float | None,
        weight: float,
    ) -> None:
        number = len(self.waiting) + len(self.seated) + getattr(self, "gone", 0)
        its = ticket(
            number,
            latency_class,
            tenant,
            prompt=prompt,
            model=model,
            arrival_s=self.now,
            weight=weight,
            deadline_s=None if deadline_s is None else self.now + deadline_s,
        )
        self.it.admit(its, self.now)
        self.it.within_budget(its, self.now)
        self.it.submit(its, self.now)
        self.waiting[number] = its

    @rule()
    def dispatches(self) -> None:
        while (assignment := self.it.next(self.now)) is not None:
            number = assignment.ticket.number
            assert assignment.worker in self.there
            assert assignment.predicted.wait_s >= 0
            assert isfinite(assignment.predicted.ttft_s)
            self.seated[number] = self.waiting.pop(number)

    @precondition(lambda self: self.seated)
    @rule(data=st.data(), tokens=st.integers(0, 50))
    def streams(self, data: st.DataObject, tokens: int) -> None:
        self.it.streamed(data.draw(st.sampled_from(sorted(self.seated))), tokens, self.now)

    @precondition(lambda self: self.seated)
    @rule(data=st.data())
    def comes_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.seated)))
        self.waiting[number] = self.seated.pop(number)
        self.it.submit(self.waiting[number], self.now)

    @precondition(lambda self: self.seated or self.waiting)
    @rule(data=st.data(), cached=st.sampled_from([None, 0, 10**9]))
    def ends(self, data: st.DataObject, cached: int | None) -> None:
        number = data.draw(st.sampled_from(sorted({*self.seated, *self.waiting})))
        self.it.ended(number, cached)
        self.seated.pop(number, None)
        self.waiting.pop(number, None)
        self.gone = getattr(self, "gone", 0) + 1

    @rule(
        key=st.sampled_from(["w1", "w2"]),
        sequences=st.sampled_from([-3, 0, 1, 4]),
        rates=st.sampled_from([FAST, None, StepModel(nan, inf, -1, 0, 0), StepModel(0, 0, 0, 0, 0, nan)]),
        model=st.sampled_from("mn"),
    )
    def worker_reports(self, key: str, sequences: int, rates: StepModel | None, model: str) -> None:
        self.it.worker_changed(worker(key, sequences, step_model=rates, model=model))
        self.there.add(key)

    @rule(key=st.sampled_from(["w1", "w2"]))
    def worker_goes(self, key: str) -> None:
        self.it.worker_gone(key)
        self.there.discard(key)

    @rule()
    def gives_way(self) -> None:
        for each in self.it.give_way(self.now):
            its = self.seated.pop(each.number)
            assert its.latency_class is B
            self.waiting[each.number] = its
            self.it.submit(its, self.now)

    @rule(seconds=st.sampled_from([0.01, 3.0, -100.0, 1e7, 1e12]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def each_request_is_in_one_place(self) -> None:
        assert {each.number for each in self.it.tickets()} == set(self.waiting)
        assert len(self.it) == len(self.waiting)
        for model in "mn":
            here = [each for each in self.waiting.values() if each.model == model]
            waiting = self.it.waiting(model)
            assert waiting.requests == len(here)
            assert waiting.prefill_tokens == sum(each.prefill_tokens for each in here)
        assert all(number in self.waiting for number in (each.number for each in self.it.impatient(self.now)))

    def teardown(self) -> None:
        """With enough credit everything goes, each once."""
        wanted = set(self.waiting)
        found: set[int] = set()
        for round_ in range(40 + len(wanted)):
            self.it.worker_changed(worker("w1", 1000, model="m"))
            self.it.worker_changed(worker("w2", 1000, model="n"))
            while (assignment := self.it.next(self.now + round_)) is not None:
                assert assignment.ticket.number not in found
                found.add(assignment.ticket.number)
        assert found == wanted


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def refill(
    it: Scheduler, wanted: dict[tuple[LatencyClass, str], int], numbers: list[int], now: float
) -> None:
    """Lets every class and tenant named have so many requests waiting."""
    waiting = Counter((each.latency_class, each.tenant) for each in it.tickets())
    for (latency_class, tenant), most in wanted.items():
        for _ in range(most - waiting[latency_class, tenant]):
            numbers[0] += 1
            it.submit(ticket(numbers[0], latency_class, tenant, arrival_s=now), now)


def shares_of(
    it: Scheduler, jumps: list[float], reports: list[StepModel | None]
) -> Counter[tuple[LatencyClass, str]]:
    """Dispatches by class and tenant while all have a backlog, the clock jumps and a worker reports rates."""
    rng, numbers, now = random.Random(3), [0], 1e4
    wanted = {(each, tenant): 6 for each in LatencyClass for tenant in "ab"}
    went: Counter[tuple[LatencyClass, str]] = Counter()
    for turn in range(1500):
        now += 0.05 + (rng.choice(jumps) if turn % 50 == 49 else 0.0)
        refill(it, wanted, numbers, now)
        it.worker_changed(worker("w1", 1))
        if reports:
            it.worker_changed(worker("w2", 0, step_model=rng.choice(reports)))
        assignment = it.next(now)
        assert assignment is not None
        its = assignment.ticket
        it.streamed(its.number, 20, now)
        it.ended(its.number)
        went[its.latency_class, its.tenant] += 1
    return went


NONSENSE = [
    StepModel(nan, nan, nan, nan, nan, nan),
    StepModel(-1.0, 1e-4, 0.0, 0.0, 0.0),
    StepModel(0.0, 0.0, 0.0, 0.0, 0.0),
    StepModel(1e9, 1e9, 1e9, 1e9, 1e9),
    StepModel(1e-30, 1e-30, 0.0, 0.0, 0.0),
    None,
]


@pytest.mark.parametrize(
    ("jumps", "reports"),
    [([0.0], []), ([-1e4, 1e4, 1e9, -1e9], []), ([0.0], NONSENSE), ([-50.0, 3600.0], NONSENSE)],
    ids=["steady", "the clock jumps", "a worker talks nonsense", "both"],
)
def test_shares_hold_while_clocks_jump_and_workers_talk_nonsense(
    jumps: list[float], reports: list[StepModel | None]
) -> None:
    went = shares_of(Scheduler(), jumps, reports)
    total = went.total()
    by_class = {each: went[each, "a"] + went[each, "b"] for each in LatencyClass}
    assert by_class[I] / total == pytest.approx(0.70, abs=0.05)
    assert by_class[S] / total == pytest.approx(0.25, abs=0.04)
    assert 0.04 <= by_class[B] / total <= 0.11, "its own share, and what the overdue have of 5 in 105"
    for each in LatencyClass:
        assert abs(went[each, "a"] - went[each, "b"]) <= 0.05 * by_class[each] + 2


def test_a_clock_that_jumped_far_ahead_and_back_leaves_no_request_behind() -> None:
    it = Scheduler()
    for number in range(2000):
        it.submit(ticket(number, S, arrival_s=0.0), 0.0)
    it.worker_changed(worker("w", 1))
    assert it.next(1e12) is not None
    found = 1
    for _ in range(2000):
        it.worker_changed(worker("w", 1))
        found += it.next(1.0) is not None
    assert found == 2000


def drain_until(it: Scheduler, number: int, now: float) -> int:
    """Dispatches until the request goes, one credit at a time."""
    for count in range(1, 100_000):
        it.worker_changed(worker("w", 1))
        assignment = it.next(now)
        assert assignment is not None
        it.streamed(assignment.ticket.number, 20, now)
        it.ended(assignment.ticket.number)
        if assignment.ticket.number == number:
            return count
    raise AssertionError("it never goes")


@pytest.mark.parametrize("latency_class", list(LatencyClass))
@pytest.mark.parametrize("prompt", [1, 50_000])
def test_a_light_tenants_wait_does_not_depend_on_a_heavy_ones_backlog(
    latency_class: LatencyClass, prompt: int
) -> None:
    it = Scheduler()
    for number in range(5000):
        it.submit(ticket(number, latency_class, "heavy", prompt=prompt), 0.0)
    for light in range(10_000, 10_020):
        now = 0.1
        it.submit(ticket(light, latency_class, "light", arrival_s=now), now)
        assert drain_until(it, light, now) <= 5, "a light one costs as much as four of the tiny ones"
        drain_until(it, min(each.number for each in it.tickets()), now)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000), st.sampled_from([1, 300, 60_000]), st.booleans())
def test_what_one_tenant_has_waiting_is_bounded(size: int, prompt: int, by_bytes: bool) -> None:
    it = Scheduler(PolicySettings(tenant_queued_requests=50, tenant_queued_bytes=100_000))
    it.worker_changed(worker("w", 0))
    for number in range(300):
        its = ticket(number, B, "flood", prompt=prompt, queued_bytes=size if by_bytes else 0)
        refusal = it.admit(its, 0.0)
        if refusal is None:
            it.submit(its, 0.0)
        else:
            assert refusal.kind.value == "TENANT_QUEUE_FULL"
            assert refusal.retry_s is not None
            assert 0 < refusal.retry_s < inf
    held = list(it.tickets())
    assert len(held) <= 50
    assert sum(each.queued_bytes for each in held) <= 100_000
    assert it.admit(ticket(1000, B, "other", prompt=prompt, queued_bytes=size), 0.0) is None


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=400), st.integers(1, 60))
def test_however_many_flood_the_queue_somebody_new_has_room(tenants: list[str], most: int) -> None:
    it = Scheduler()
    for number, tenant in enumerate(tenants):
        if not it.full(tenant, most):
            it.submit(ticket(number, I, tenant), 0.0)
    assert len(it) <= most
    flooders = len({each.tenant for each in it.tickets()})
    assert most < 2**flooders or not it.full("new", most)
    for each in list(it.tickets()):
        it.ended(each.number)
    assert not it.full("a", most)


def when_the_large_one_goes(it: Scheduler, until_s: float) -> float | None:
    """A request for nearly all blocks of a worker, among small ones that fill every gap."""
    now, number, went_s = 0.0, 1, None
    it.submit(ticket(0, S, prompt=60_000), 0.0)  # 938 blocks
    running: dict[str, list[tuple[float, Assignment]]] = {"w1": [], "w2": []}
    while now < until_s and went_s is None:
        now += 0.5
        for key, seats in running.items():
            for ends_s, assignment in list(seats):
                if ends_s <= now:
                    seats.remove((ends_s, assignment))
                    it.ended(assignment.ticket.number)
            view = worker(key, credit=Cost(1000, 8 - len(seats), 1000 - 100 * len(seats)))
            view.sequences = len(seats)
            it.worker_changed(view)
        for _ in range(40 - len(it)):
            it.submit(ticket(number, S, prompt=50, arrival_s=now), now)
            number += 1
        while (assignment := it.next(now)) is not None:
            its = assignment.ticket
            running[assignment.worker].append((now + 3.0 + 0.5 * (its.number % 7), assignment))
            went_s = now if its.number == 0 else went_s
    return went_s


def test_a_request_too_large_for_what_is_free_gets_a_worker_to_itself_in_the_end() -> None:
    """One worker is emptied for it, once it was overdue for as long as it takes to become overdue."""
    assert when_the_large_one_goes(Scheduler(PolicySettings(clear_for_starving=False)), 200.0) is None
    went_s = when_the_large_one_goes(Scheduler(), 200.0)
    assert went_s is not None
    assert 20.0 <= went_s <= 40.0
