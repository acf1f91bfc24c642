"""The queue of one model: class shares, fair tenants, deadlines, bounds. Driven by a machine with slots."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import Cost, LatencyClass, PolicySettings, Ticket
from services.router.policy.queue import Lane, ModelQueue
from services.router.policy.queue.counters import Counters, Prices
from services.router.policy.queue.lane import TenantLane
from services.router.policy.queue.order import Entry, TenantOrder
from services.router.policy.queue.ranked import Ranked
from services.router.policy.queue.shares import Shares

I, S, B = LatencyClass  # noqa: E741
PRICES = Prices(1.0, 0.1, 2.0)


def ticket(number: int, latency_class: LatencyClass = S, tenant: str = "t", **more: object) -> Ticket:
    prompt = int(str(more.pop("prompt", 100)))
    values = {"arrival_s": 0.0, "expected_output": 100} | more
    cost = Cost(prompt, 1, 1 + prompt // 64)
    return Ticket(
        number=number,
        model="m",
        tenant=tenant,
        latency_class=latency_class,
        cost=cost,
        total_tokens=prompt + 100,
        **values,  # type: ignore[arg-type]
    )


def order_of(queue: ModelQueue, now: float) -> list[int]:
    """Numbers in the order in which they go when everything goes."""
    found = []
    while (entry := next(queue.candidates(now), None)) is not None:
        queue.take(entry, entry.cost_s, entry.ticket.prefill_tokens, 0)
        found.append(entry.ticket.number)
    return found


class SlotMachine:
    """Serves a queue: each step every seated request makes one token, then the free slots fill."""

    def __init__(self, queue: ModelQueue, slots: int, outputs: dict[int, int]) -> None:
        self.queue = queue
        self.slots = slots
        self.left: dict[int, tuple[Ticket, int]] = {}
        self.outputs = outputs
        self.served: Counter[str] = Counter()
        self.started: list[Ticket] = []

    def step(self, now: float) -> None:
        for number, (its, left) in list(self.left.items()):
            self.queue.charge(its, output=1)
            self.served[its.tenant] += 2
            if left == 1:
                del self.left[number]
            else:
                self.left[number] = (its, left - 1)
        while len(self.left) < self.slots:
            entry = next(self.queue.candidates(now), None)
            if entry is None:
                return
            its = entry.ticket
            self.queue.take(entry, entry.cost_s, its.prefill_tokens, 0)
            self.left[its.number] = (its, self.outputs[its.number])
            self.served[its.tenant] += its.prefill_tokens
            self.started.append(its)


def jain(values: list[float]) -> float:
    """1 when all are equal, 1 / n when one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


# shares of classes


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(1.0, 100.0), min_size=2, max_size=4),
    st.lists(st.floats(1e-3, 2.0), min_size=4, max_size=4),
    st.integers(0, 2**32),
)
def test_backlogged_lanes_get_their_shares_whatever_their_requests_cost(
    shares: list[float], sizes: list[float], seed: int
) -> None:
    it, rng = Shares(shares, 1.0), random.Random(seed)
    lanes, spent = range(len(shares)), [0.0] * len(shares)
    total = 400 * max(max(sizes), 1.0) * sum(shares) / min(shares)
    while sum(spent) < min(total, 20_000 * min(sizes)):
        lane = it.order(lanes)[0]
        cost = sizes[lane] * rng.uniform(0.5, 1.5)
        it.charge(lane, cost, lanes)
        spent[lane] += cost
    bound = 2 * max(sizes) + 2.0  # a request and a round
    for lane in lanes:
        fair = shares[lane] / sum(shares) * sum(spent)
        assert abs(spent[lane] - fair) <= bound


def test_a_lane_that_was_away_is_served_at_once_but_saves_nothing_up() -> None:
    it = Shares([70, 25, 5], 1.0)
    for _ in range(1000):
        it.charge(2, 0.05, [2])
    assert it.order([0, 2]) == [0, 2]
    ahead = 0
    while it.order([0, 2])[0] == 0:
        it.charge(0, 0.05, [0, 2])
        ahead += 1
    assert ahead * 0.05 <= 2 * 0.7 + 0.05, "what it kept and one round more, however long it was away"


def test_a_blocked_lane_does_not_hold_up_others_nor_collect_what_they_get() -> None:
    it = Shares([70, 25, 5], 1.0)
    for _ in range(1000):
        it.charge(2, 0.5, [2])  # lanes 0 and 1 wait, but nothing of them can go
    assert max(it.balance) <= 0.7 + 1e-9


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), 1e30, -5.0])
def test_a_nonsensical_cost_does_not_shut_a_lane_for_ever(cost: float) -> None:
    it = Shares([70, 25, 5], 1.0)
    it.charge(0, cost, [0, 1, 2])
    served = 0.0
    while it.order([0, 1, 2])[0] != 0:
        it.charge(it.order([0, 1, 2])[0], 1.0, [0, 1, 2])
        served += 1.0
    assert served <= 3600.0


def test_class_shares_hold_in_gpu_seconds_under_backlog() -> None:
    queue, numbers, rng = ModelQueue(PolicySettings(aging=False)), count(), random.Random(5)
    spent: Counter[LatencyClass] = Counter()
    costs = {I: 0.1, S: 0.5, B: 3.0}
    for _ in range(6000):
        for each in LatencyClass:
            while queue.held[each].requests < 3:
                queue.add(ticket(next(numbers), each), 0.01, costs[each] * rng.uniform(0.2, 1.8), 0.0)
        entry = next(queue.candidates(0.0))
        queue.take(entry, entry.cost_s, 100, 0)
        spent[entry.ticket.latency_class] += entry.cost_s
    total = spent.total()
    assert spent[I] / total == pytest.approx(0.70, abs=0.02)
    assert spent[S] / total == pytest.approx(0.25, abs=0.02)
    assert spent[B] / total == pytest.approx(0.05, abs=0.02)


def test_classes_that_wait_alone_share_everything() -> None:
    queue, numbers = ModelQueue(PolicySettings(aging=False)), count()
    spent: Counter[LatencyClass] = Counter()
    for _ in range(3000):
        for each in (S, B):
            while queue.held[each].requests < 2:
                queue.add(ticket(next(numbers), each), 0.01, 0.2, 0.0)
        entry = next(queue.candidates(0.0))
        queue.take(entry, entry.cost_s, 100, 0)
        spent[entry.ticket.latency_class] += entry.cost_s
    assert spent[S] / spent.total() == pytest.approx(25 / 30, abs=0.02)


def test_overdue_requests_get_a_small_share_and_do_not_take_over() -> None:
    queue, numbers = ModelQueue(PolicySettings()), count()
    spent: Counter[int] = Counter()
    now = 100_000.0
    for _ in range(4000):
        for each in (I, B):
            while queue.held[each].requests < 4:
                queue.add(ticket(next(numbers), each, arrival_s=0.0 if each is B else now), 0.01, 0.2, now)
        entry = next(queue.candidates(now))
        queue.take(entry, entry.cost_s, 100, 0)
        spent[entry.ticket.latency_class] += entry.cost_s
    assert spent[B] / spent.total() == pytest.approx(10 / 80, abs=0.01), "its own 5 and the overdue's 5"


# fairness of tenants


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.integers(1, 60), st.sampled_from([0.5, 1.0, 2.0, 4.0])),
        min_size=2,
        max_size=5,
    ),
    st.integers(1, 12),
)
def test_backlogged_tenants_differ_by_no_more_than_the_bound(
    tenants: list[tuple[int, int, float]], slots: int
) -> None:
    queue, numbers, outputs = ModelQueue(PolicySettings(locality_credit_tokens=0)), count(), {}
    machine = SlotMachine(queue, slots, outputs)
    longest = max(prompt for prompt, _, _ in tenants)
    most = 2 * slots * max(output for _, output, _ in tenants)
    least_weight = min(weight for _, _, weight in tenants)
    for _ in range(400):
        for index, (prompt, output, weight) in enumerate(tenants):
            waiting = queue.tenants[S].get(f"t{index}")
            for _ in range(slots + 1 - (waiting.requests if waiting else 0)):
                number = next(numbers)
                outputs[number] = output
                queue.add(ticket(number, S, f"t{index}", prompt=prompt, weight=weight), 0.01, 0.1, 0.0)
        machine.step(0.0)
    service = [machine.served[f"t{index}"] / weight for index, (_, _, weight) in enumerate(tenants)]
    assert max(service) - min(service) <= 2 * max(longest, most) / least_weight


def test_service_of_backlogged_tenants_is_equal_by_jains_index() -> None:
    rng = random.Random(2)
    shapes = [(2000, 20), (30, 400), (500, 100), (100, 100), (4000, 5)]
    queue, numbers, outputs = ModelQueue(PolicySettings()), count(), {}
    machine = SlotMachine(queue, 16, outputs)
    for _ in range(6000):
        for index, (prompt, output) in enumerate(shapes):
            waiting = queue.tenants[S].get(f"t{index}")
            for _ in range(17 - (waiting.requests if waiting else 0)):
                number = next(numbers)
                outputs[number] = max(1, round(output * rng.uniform(0.3, 1.7)))
                long = max(1, round(prompt * rng.uniform(0.3, 1.7)))
                queue.add(ticket(number, S, f"t{index}", prompt=long), 0.01, 0.1, 0.0)
        machine.step(0.0)
    assert jain([machine.served[f"t{index}"] for index in range(len(shapes))]) >= 0.98


@pytest.mark.parametrize("prompt", [1, 20_000])
def test_a_flood_of_tiny_or_huge_requests_delays_nobody_else(prompt: int) -> None:
    queue, numbers, outputs = ModelQueue(PolicySettings()), count(), {}
    machine = SlotMachine(queue, 8, outputs)
    waited = []
    for _ in range(3000):
        number = next(numbers)
        outputs[number] = 20
        queue.add(ticket(number, S, "flood", prompt=prompt), 0.01, 0.1, 0.0)
    for step in range(2000):
        machine.step(0.0)
        if step % 40 == 0:
            number = next(numbers)
            outputs[number] = 20
            queue.add(ticket(number, S, "light", prompt=200), 0.01, 0.1, 0.0)
            before = len(machine.started)
            while not any(its.number == number for its in machine.started[before:]):
                machine.step(0.0)
            waited.append(len(machine.started) - before)
    assert max(waited) <= 8, "it goes with the next slots that fall free"


def test_an_idle_tenant_saves_nothing_up() -> None:
    counters = Counters(PRICES)
    counters.wait("busy", 1.0)
    counters.charge("busy", prompt=1e6)
    counters.wait("late", 1.0)
    assert counters.counter("late") == counters.counter("busy")


def test_a_tenant_that_comes_back_to_an_empty_queue_starts_where_the_last_one_stood() -> None:
    counters = Counters(PRICES)
    counters.wait("busy", 1.0)
    counters.charge("busy", prompt=1e6)
    counters.idle("busy")
    counters.wait("late", 1.0)
    counters.wait("busy", 1.0)
    assert counters.counter("late") == counters.counter("busy") == 1e6


def test_without_lift_an_idle_tenant_would_take_over() -> None:
    counters = Counters(PRICES, lift=False)
    counters.wait("busy", 1.0)
    counters.charge("busy", prompt=1e6)
    counters.wait("late", 1.0)
    assert counters.counter("late") == 0.0


def test_a_new_weight_holds_from_now_on() -> None:
    counters = Counters(PRICES)
    counters.wait("a", 1.0)
    counters.charge("a", prompt=1000)
    counters.wait("a", 4.0)
    assert counters.counter("a") == 1000
    counters.charge("a", prompt=1000)
    assert counters.counter("a") == 1250


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 500), st.integers(0, 500)), max_size=40))
def test_what_all_routers_served_is_counted_once(work: list[tuple[bool, int, int]]) -> None:
    """Own work is charged first and reported later; others' work is only reported."""
    counters, total, to_report = Counters(PRICES), 0, []
    for own, prompt, output in work:
        total += prompt + 2 * output
        to_report.append((prompt, output))
        if own:
            counters.charge("a", prompt=prompt, output=output)
        if len(to_report) > 3:
            counters.served("a", *to_report.pop(0))
        assert counters.counter("a") <= total
    for each in to_report:
        counters.served("a", *each)
    assert counters.counter("a") == pytest.approx(total)


def test_a_prompt_that_was_less_cached_than_thought_is_not_counted_twice() -> None:
    counters = Counters(PRICES)
    counters.charge("a", prompt=100, cached=900)
    counters.served("a", 1000, 0)
    counters.correct("a", prompt=900, cached=-900)
    counters.served("a", 0, 0)
    assert counters.counter("a") == pytest.approx(1000)


# the order within a tenant


def test_a_long_prompt_that_is_soon_due_starts_before_a_short_one() -> None:
    queue = ModelQueue(PolicySettings())
    queue.add(ticket(1, I), 0.01, 0.1, 0.0)
    queue.add(ticket(2, I), 0.40, 0.5, 0.0)
    queue.add(ticket(3, I, arrival_s=0.06), 0.01, 0.1, 0.06)
    assert order_of(queue, 0.07) == [1, 2, 3]


def test_a_late_request_gives_way_until_it_has_waited_twice_its_target() -> None:
    for now, expected in ((0.6, [2, 1]), (1.1, [1, 2])):
        queue = ModelQueue(PolicySettings())
        queue.add(ticket(1, I), 0.0, 0.1, 0.0)
        queue.add(ticket(2, I, arrival_s=0.5), 0.0, 0.1, 0.5)
        list(queue.candidates(0.6))
        assert order_of(queue, now) == expected


def test_relegated_requests_go_shortest_first() -> None:
    queue = ModelQueue(PolicySettings())
    for number, cost_s in ((1, 3.0), (2, 1.0), (3, 2.0)):
        queue.add(ticket(number, I), 0.0, cost_s, 0.0)
    assert order_of(queue, 0.7) == [2, 3, 1]


def test_what_is_back_in_its_place_has_its_share_while_others_can_meet_their_target() -> None:
    queue, numbers = ModelQueue(PolicySettings(restored_share=0.25)), count(1)
    for number in range(1000, 1100):
        queue.add(ticket(number, I), 0.0, 1.0, 0.0)
    went = []
    for turn in range(80):
        now = 10.0 + 0.01 * turn
        queue.add(ticket(next(numbers), I, arrival_s=now), 0.0, 1.0, now)
        went.append(next(queue.candidates(now)))
        queue.take(went[-1], 0.0, 1, 0)
    assert sum(entry.ticket.number >= 1000 for entry in went) == 20
    assert [entry.ticket.number for entry in went if entry.ticket.number >= 1000] == list(range(1000, 1020))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=30), st.floats(1.0, 3.0))
def test_nothing_starves_by_relegation(costs: list[float], after: float) -> None:
    queue = ModelQueue(PolicySettings(restore_after=after))
    numbers = count(1)
    queue.add(ticket(0, I), 0.0, 100.0, 0.0)
    now = 0.0
    for cost_s in costs * 5:
        now += 0.2
        queue.add(ticket(next(numbers), I, arrival_s=now), 0.0, cost_s, now)
        entry = next(queue.candidates(now))
        queue.take(entry, 0.0, 1, 0)
        if entry.ticket.number == 0:
            break
        assert now <= 0.5 * after + 0.2, "once it is back in its place, nothing goes before it"


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 10**6)), unique=True, max_size=400), st.data())
def test_a_ranking_is_a_sorted_set(keys: list[tuple[float, int]], data: st.DataObject) -> None:
    ranked: Ranked[tuple[float, int]] = Ranked()
    for key in keys:
        ranked.add(key)
    gone = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
    for key in gone:
        ranked.remove(key)
    left = sorted(set(keys) - gone)
    assert list(ranked) == left
    assert len(ranked) == len(left)
    assert ranked.first == (left[0] if left else None)


def test_a_large_ranking_splits_and_stays_sorted() -> None:
    ranked, rng = Ranked[tuple[float, int]](), random.Random(1)
    keys = [(rng.random(), number) for number in range(5000)]
    for key in keys:
        ranked.add(key)
    for key in keys[::2]:
        ranked.remove(key)
    assert list(ranked) == sorted(keys[1::2])
    with pytest.raises(KeyError):
        ranked.remove(keys[0])


def test_an_order_forgets_what_was_removed_from_every_place() -> None:
    order = TenantOrder()
    entries = [Entry(ticket(n), 0.0, 1.0, float(n), float(n), 1e9, restore_s=5.0 + n) for n in range(4)]
    for entry in entries:
        order.add(entry)
    assert [each.ticket.number for each in order.in_order(1.5)] == [2, 3, 0, 1]
    assert [each.ticket.number for each in order.in_order(5.5)] == [0, 1, 2, 3]
    for entry in entries:
        order.remove(entry)
    assert list(order.in_order(100.0)) == []


def test_short_requests_go_before_a_long_one_until_that_is_due() -> None:
    queue = ModelQueue(PolicySettings())
    queue.add(ticket(0, I, arrival_s=0.0, ttft_target_s=5.0), 2.0, 3.0, 0.0)
    for number, arrival_s in enumerate((0.1, 2.9), 1):
        queue.add(ticket(number, I, arrival_s=arrival_s, ttft_target_s=5.0), 0.01, 0.1, arrival_s)
    assert [each.ticket.number for each in queue.candidates(2.95)] == [1, 2, 0]
    queue.add(ticket(3, I, arrival_s=2.99, ttft_target_s=5.0), 0.01, 0.1, 2.99)
    assert [each.ticket.number for each in queue.candidates(2.995)] == [1, 2, 0, 3]


def test_who_is_not_late_is_not_relegated_because_it_is_wanted_soon() -> None:
    queue = ModelQueue(PolicySettings())
    queue.add(ticket(0, I, arrival_s=0.0, ttft_target_s=5.0), 0.01, 0.1, 0.0)
    queue.add(ticket(1, I, arrival_s=3.0, ttft_target_s=5.0), 0.01, 0.1, 3.0)
    assert [each.ticket.number for each in queue.candidates(4.9)] == [0, 1]
    assert [each.ticket.number for each in queue.candidates(5.1)] == [1, 0]


def test_without_the_part_deadlines_alone_count() -> None:
    queue = ModelQueue(PolicySettings(short_first=False))
    queue.add(ticket(0, I, ttft_target_s=5.0), 2.0, 3.0, 0.0)
    queue.add(ticket(1, I, ttft_target_s=5.0), 0.01, 0.1, 0.0)
    assert [each.ticket.number for each in queue.candidates(0.1)] == [0, 1]


def test_the_look_ahead_is_bounded_for_each_lane_and_tenant() -> None:
    queue = ModelQueue(PolicySettings(aging=False))
    for number in range(2000):
        queue.add(ticket(number, S if number % 2 else B, f"t{number % 100}"), 0.01, 0.1, 0.0)
    looked = list(queue.candidates(0.0))
    assert Counter(entry.lane for entry in looked) == {Lane.STANDARD: 32, Lane.BATCH: 32}
    assert max(Counter((entry.lane, entry.ticket.tenant) for entry in looked).values()) <= 8


def test_without_tenant_fairness_all_are_one() -> None:
    queue = ModelQueue(PolicySettings(tenant_fairness=False, relegation=False))
    for number in range(10):
        queue.add(ticket(number, S, "a" if number < 8 else "b", arrival_s=float(number)), 0.0, 0.1, 0.0)
    assert order_of(queue, 0.0) == list(range(10))


def test_what_waits_is_counted_by_class_and_tenant() -> None:
    queue = ModelQueue(PolicySettings())
    queue.add(ticket(1, S, "a", queued_bytes=10), 0.5, 1.0, 0.0)
    queue.add(ticket(2, B, "a", queued_bytes=20), 0.25, 2.0, 0.0)
    assert (queue.held[S].requests, queue.held[B].cost_s) == (1, 2.0)
    assert queue.tenants[B]["a"].bytes == 20
    queue.remove(1)
    queue.remove(2)
    assert all(held.requests == 0 and held.cost_s == 0.0 for held in queue.held.values())
    assert all(not tenants for tenants in queue.tenants.values())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_lane_of_one_gives_what_one_that_always_has_orders_gives(data: st.DataObject) -> None:
    lanes = [TenantLane(TenantOrder, Counters(PRICES)) for _ in range(2)]
    held: dict[int, tuple[Entry, ...]] = {}
    for step in range(30):
        now = float(step)
        if held and data.draw(st.booleans()):
            number = data.draw(st.sampled_from(sorted(held)))
            for lane, entry in zip(lanes, held.pop(number), strict=True):
                lane.remove(entry, entry.ticket.tenant)
        else:
            tenant, due_s = data.draw(st.sampled_from("ab")), now + data.draw(st.floats(-3.0, 3.0))
            its = ticket(step, tenant=tenant)
            held[step] = tuple(Entry(its, 0.0, 1.0, due_s, due_s, 1e9, restore_s=now + 4.0) for _ in lanes)
            for lane, entry in zip(lanes, held[step], strict=True):
                lane.counters.wait(tenant, 1.0)
                lane.add(entry, tenant)
        assert lanes[1].orders is not None, "looking is what makes them"
        one, other = ([(each.ticket.number, each.place) for each in it.in_order(now, 8)] for it in lanes)
        assert one == other
        assert [it.size for it in lanes] == [len(held)] * 2
