"""Which worker takes a request: warm before cold, patience, fairness of ties, and workers that lie."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy.classify import LatencyClass
from services.router.policy.expected import EXPECTED_S
from services.router.policy.fleet import Fleet
from services.router.policy.placement import Choice, Placement
from services.router.policy.placement_settings import PlacementSettings
from services.router.policy.speed import MOST_FASTER, PRIOR, StepModel
from services.router.policy.ticket import Cost, Digests, Ticket
from services.router.policy.worker import WorkerView

EU, US = frozenset({("region", "eu")}), frozenset({("region", "us")})
NUMERICS = b"n"


def chain(blocks: int, seed: int = 0) -> Digests:
    return np.random.default_rng(seed).integers(1, 1 << 63, (blocks, 2), np.uint64)


def worker(key: str, **more: object) -> WorkerView:
    values: dict[str, object] = {
        "model": "m",
        "ready": True,
        "credit": Cost(8192, 64, 10_000),
        "sequences": 0,
        "waiting_tokens": 0,
        "max_sequences": 64,
        "max_tokens": 100_000,
        "total_blocks": 6000,
        "numerics": NUMERICS,
        "step_model": PRIOR,
    }
    return WorkerView(key=key, **(values | more))  # type: ignore[arg-type]


def fleet_of(*workers: WorkerView) -> Fleet:
    fleet = Fleet()
    for each in workers:
        fleet.put(each)
    return fleet


def ticket(prompt: int = 6400, digests: Digests | None = None, **more: object) -> Ticket:
    values: dict[str, object] = {
        "number": 1,
        "model": "m",
        "tenant": "t",
        "latency_class": LatencyClass.STANDARD,
        "cost": Cost(prompt, 1, prompt // 64 + 1),
        "total_tokens": prompt + 500,
        "arrival_s": 0.0,
        "expected_output": 300,
    }
    if digests is not None:
        values["chains"] = {NUMERICS: digests}
    return Ticket(**(values | more))  # type: ignore[arg-type]


def chosen(placement: Placement, it: Ticket, fleet: Fleet, now: float = 0.0, **more: float) -> Choice:
    return placement.choose(it, fleet, fleet.hits(it.chains), now, **more)


def closed(key: str, **more: object) -> WorkerView:
    return worker(key, credit=Cost(0, 0, 0), **more)


def test_a_warm_worker_is_taken_before_an_idle_cold_one() -> None:
    fleet = fleet_of(worker("warm", sequences=5), worker("idle"))
    digests = chain(100)
    fleet.index.stored("warm", digests[:85])
    choice = chosen(Placement(), ticket(6400, digests), fleet)
    assert (choice.worker, choice.cached_tokens, choice.cold) == ("warm", 85 * 64, False)
    assert choice.uncached(Cost(6400, 1, 101)) == 15 * 64


def test_at_least_one_token_is_computed_of_a_prompt_that_is_cached_whole() -> None:
    fleet = fleet_of(worker("w"))
    digests = chain(10)
    fleet.index.stored("w", digests)
    it = ticket(640, digests)
    choice = chosen(Placement(), it, fleet)
    assert choice.uncached(it.cost) == 1


@pytest.mark.parametrize("overload", [{"sequences": 40}, {"waiting_tokens": 40_000}])
def test_an_overloaded_warm_worker_is_left(overload: dict[str, object]) -> None:
    fleet = fleet_of(worker("warm", **overload), worker("idle"))
    digests = chain(100)
    fleet.index.stored("warm", digests[:82])
    assert chosen(Placement(), ticket(6400, digests), fleet).worker == "idle"


@pytest.mark.parametrize(("room", "taken"), [(10_000, "idle"), (200, "warm")])
def test_a_prompt_leaves_its_overloaded_keeper_only_for_a_worker_with_kv_to_spare(
    room: int, taken: str
) -> None:
    fleet = fleet_of(
        worker("warm", sequences=60, max_sequences=256),
        worker("idle", sequences=1, credit=Cost(8192, 64, room)),
    )
    digests = chain(100)
    fleet.index.stored("warm", digests)
    assert chosen(Placement(), ticket(6400, digests), fleet).worker == taken


def test_a_request_waits_for_a_closed_warm_worker_only_so_long() -> None:
    fleet = fleet_of(closed("warm"), worker("idle"))
    digests = chain(100)
    fleet.index.stored("warm", digests)
    placement = Placement(PlacementSettings(patience_saved=0.0))
    it = ticket(6400, digests, arrival_s=10.0)
    waits = chosen(placement, it, fleet, 10.0)
    assert (waits.worker, waits.wait_until_s) == (None, 10.25)
    assert chosen(placement, it, fleet, 10.25).worker == "idle"
    assert chosen(placement, it, fleet, 12.0, head_wait_s=3.0).wait_until_s == 16.0


def test_the_more_a_closed_warm_worker_saves_the_longer_it_is_waited_for() -> None:
    fleet = fleet_of(closed("warm"), worker("idle"))
    until = []
    for blocks in (100, 200, 400):
        digests = chain(blocks, blocks)
        fleet.index.stored("warm", digests)
        until.append(chosen(Placement(), ticket(blocks * 64, digests), fleet).wait_until_s or 0.0)
    assert until[0] == pytest.approx(2 * PRIOR.prefill_s(6400), rel=0.02)
    assert until[0] < until[1] / 2 < until[2] / 4


@pytest.mark.parametrize("shared", [90, 0])
def test_blocks_that_a_warm_worker_keeps_already_need_no_credit(shared: int) -> None:
    little = Cost(8192, 64, 20)
    fleet, digests = fleet_of(worker("warm", credit=little, sequences=1), worker("idle")), chain(100)
    fleet.index.stored("warm", digests[:shared])
    assert chosen(Placement(), ticket(6400, digests), fleet).worker == ("warm" if shared else "idle")


def test_where_kv_is_scarce_a_closed_warm_worker_is_waited_for_longer() -> None:
    until = []
    for room in (6000, 1500, 700, 150):
        open_worker = worker("open", credit=Cost(8192, 64, room), sequences=20, running_context=40_000)
        fleet, digests = fleet_of(closed("warm"), open_worker), chain(100)
        fleet.index.stored("warm", digests)
        until.append(chosen(Placement(), ticket(6400, digests), fleet).wait_until_s or 0.0)
    assert until[0] == until[1] < until[2] < until[3]


def test_patience_follows_recent_waits_and_ends_at_the_requests_own_slack() -> None:
    fleet = fleet_of(closed("warm"), worker("idle", credit=Cost(1 << 30, 1 << 30, 1 << 30)))
    digests = chain(100)
    fleet.index.stored("warm", digests)
    placement = Placement(PlacementSettings(patience_saved=0.0))
    for now in range(50):
        cold = ticket(64, arrival_s=now - 2.0)
        placement.book(chosen(placement, cold, fleet, float(now)), cold, fleet, float(now))
    patient = chosen(placement, ticket(6400, digests), fleet, 0.1)
    assert patient.wait_until_s is not None
    assert 3.0 < patient.wait_until_s < 4.0
    hurried = chosen(placement, ticket(6400, digests, deadline_s=1.0), fleet, 0.1)
    assert hurried.wait_until_s is not None
    assert 0.1 < hurried.wait_until_s < 1.0 - 6400 * PRIOR.b


def test_patience_ends_in_time_for_the_first_tokens_target() -> None:
    fleet = fleet_of(closed("warm"), worker("idle"))
    digests = chain(100)
    fleet.index.stored("warm", digests)
    it = ticket(6400, digests, ttft_target_s=0.8)
    waits = chosen(Placement(), it, fleet, 0.0)
    assert waits.wait_until_s is not None
    assert 0.1 < waits.wait_until_s < 0.8 - 6400 * PRIOR.b


def test_batch_work_that_waited_for_long_makes_no_other_class_patient() -> None:
    fleet = fleet_of(closed("warm"), worker("idle", credit=Cost(1 << 30, 1 << 30, 1 << 30)))
    digests = chain(100)
    fleet.index.stored("warm", digests)
    placement = Placement(PlacementSettings(patience_saved=0.0))
    for now in range(50):
        old = ticket(64, arrival_s=now - 3600.0, latency_class=LatencyClass.BATCH)
        placement.book(chosen(placement, old, fleet, float(now)), old, fleet, float(now))
    for urgent in (LatencyClass.INTERACTIVE, LatencyClass.STANDARD):
        it = ticket(6400, digests, latency_class=urgent)
        assert chosen(placement, it, fleet, 0.1).wait_until_s == 0.25
        assert chosen(placement, it, fleet, 0.25).worker == "idle"


def test_a_request_that_is_late_waits_for_no_warm_worker_longer_than_that_saves() -> None:
    fleet = fleet_of(closed("warm"), worker("idle", credit=Cost(1 << 30, 1 << 30, 1 << 30)))
    digests = chain(100)
    fleet.index.stored("warm", digests)
    placement = Placement()
    for now in range(50):
        old = ticket(64, arrival_s=now - 60.0)
        placement.book(chosen(placement, old, fleet, float(now)), old, fleet, float(now))
    it = ticket(6400, digests, ttft_target_s=2.0)
    start_by_s = 2.0 - PRIOR.prefill_s(6400)
    assert chosen(placement, it, fleet, start_by_s - 0.2).worker is None
    assert chosen(placement, it, fleet, 2.0).worker == "idle"


def test_lengthy_prompts_go_one_after_the_other_to_a_worker_and_short_ones_beside_them() -> None:
    fleet, placement = fleet_of(worker("a", credit=Cost(1 << 20, 64, 10_000))), Placement()
    lengthy = ticket(20_000)
    placement.book(chosen(placement, lengthy, fleet), lengthy, fleet, 0.0)
    assert chosen(placement, lengthy, fleet).worker is None
    assert chosen(placement, ticket(100), fleet).worker == "a"
    fleet.put(worker("a", credit=Cost(1 << 20, 64, 10_000), waiting_tokens=9_000))
    assert chosen(placement, lengthy, fleet).worker == "a"


def test_without_open_workers_nobody_is_chosen() -> None:
    fleet = fleet_of(closed("a"), worker("b", ready=False), worker("c", credit=Cost(100, 1, 3), sequences=1))
    assert chosen(Placement(), ticket(), fleet) == Choice(None)
    assert not fleet_of(closed("a")).any_open


def test_an_idle_worker_takes_what_exceeds_its_block_credit() -> None:
    fleet = fleet_of(worker("idle", credit=Cost(100, 1, 3)))
    assert chosen(Placement(), ticket(), fleet).worker == "idle"


def test_the_least_product_of_seconds_and_sequences_wins() -> None:
    fleet = fleet_of(
        worker("long", waiting_tokens=3000), worker("busy", sequences=9), worker("best", sequences=1)
    )
    assert chosen(Placement(), ticket(1000), fleet).worker == "best"
    assert chosen(Placement(PlacementSettings(in_flight_term=False)), ticket(100), fleet).worker != "long"


def test_a_slow_worker_counts_its_queue_in_its_own_seconds() -> None:
    slow = PRIOR._replace(a=10 * PRIOR.a, b=10 * PRIOR.b, e=10 * PRIOR.e)
    fleet = fleet_of(worker("slow", step_model=slow), *(worker(f"fast{i}", sequences=4) for i in range(3)))
    it = ticket(1000)
    assert chosen(Placement(), it, fleet).worker != "slow"
    assert chosen(Placement(PlacementSettings(calibrated=False)), it, fleet).worker == "slow"


def test_equal_workers_take_cold_requests_in_turn() -> None:
    fleet, placement = fleet_of(*(worker(f"w{i}") for i in range(5))), Placement()
    taken = []
    for number in range(15):
        it = ticket(number=number)
        choice = chosen(placement, it, fleet)
        placement.book(choice, it, fleet, 0.0)
        taken.append(choice.worker)
        for key in range(5):
            fleet.put(worker(f"w{key}"))
    assert all(len(set(taken[start : start + 5])) == 5 for start in (0, 5, 10))


def test_a_burst_with_one_prefix_meets_on_one_worker_before_anything_is_stored() -> None:
    fleet, placement = fleet_of(worker("a"), worker("b"), worker("c")), Placement()
    taken = set()
    for number in range(6):
        it = ticket(1000, chain(15), number=number)
        choice = chosen(placement, it, fleet)
        placement.book(choice, it, fleet, 0.0)
        taken.add(choice.worker)
    assert len(taken) == 1
    fleet.index.expire(EXPECTED_S)
    assert not fleet.hits({NUMERICS: chain(15)}).any()


def test_a_prefix_under_way_takes_of_credit_what_the_worker_has_not_told_of_yet() -> None:
    fleet, placement, digests = fleet_of(worker("a")), Placement(), chain(100)
    first = ticket(6400, digests)
    placement.book(chosen(placement, first, fleet), first, fleet, 0.0)
    fleet.put(worker("a"))
    fleet.index.stored("a", digests[:30])
    choice = chosen(placement, first, fleet)
    assert (choice.cold, choice.cached_tokens) == (False, 6399)
    assert placement.book(choice, first, fleet, 0.0).prefill_tokens == 6400 - 30 * 64
    fleet.index.stored("a", digests[30:])
    assert placement.book(choice, first, fleet, 0.0).prefill_tokens == 1


@pytest.mark.parametrize(
    ("told", "queued", "taken"),
    [(0, 0, "b"), (100, 0, None), (0, 6400, None)],
    ids=["under way", "there already", "no sooner elsewhere"],
)
def test_identical_requests_do_not_all_wait_for_one_prefill(
    told: int, queued: int, taken: str | None
) -> None:
    fleet, placement, digests = fleet_of(worker("a")), Placement(), chain(100)
    first = ticket(6400, digests)
    placement.book(chosen(placement, first, fleet), first, fleet, 0.0)
    fleet.index.stored("a", digests[:told])
    fleet.put(closed("a", sequences=1, waiting_tokens=6400))
    fleet.put(worker("b", waiting_tokens=queued))
    assert chosen(placement, first, fleet).worker == taken
    once = Placement(PlacementSettings(second_copies=False))
    assert chosen(once, first, fleet).worker is None


def test_booking_takes_from_credit_what_is_computed_and_no_more() -> None:
    fleet, placement = fleet_of(worker("w", credit=Cost(2000, 2, 500))), Placement()
    digests = chain(100)
    fleet.index.stored("w", digests[:90])
    it = ticket(6400, digests)
    cost = placement.book(chosen(placement, it, fleet), it, fleet, 0.0)
    assert cost == Cost(640, 1, 101)
    view = fleet.get("w")
    assert view is not None
    assert view.credit == Cost(1360, 1, 399)
    assert (view.sequences, view.waiting_tokens) == (1, 640)
    assert (fleet.sequences[0], fleet.waiting_tokens[0], view.credit.prefill_tokens) == (1, 640, 1360)


def test_only_chains_of_a_workers_own_numerics_are_expected_there() -> None:
    fleet, placement = fleet_of(worker("w", numerics=b"other")), Placement()
    it = ticket(1000, chain(15))
    placement.book(chosen(placement, it, fleet), it, fleet, 0.0)
    assert fleet.index.kept("w") == 0


def test_hits_of_several_numerics_are_joined() -> None:
    fleet = fleet_of(worker("a", numerics=b"a"), worker("b", numerics=b"b"))
    fleet.index.stored("a", chain(10, 1)[:4])
    fleet.index.stored("b", chain(10, 2)[:7])
    assert fleet.hits({b"a": chain(10, 1), b"b": chain(10, 2)}).tolist()[:2] == [4, 7]


def test_long_prompts_stay_off_small_caches_while_others_are_there() -> None:
    small, large = worker("small", total_blocks=600), worker("large", sequences=20)
    it = ticket(12_000)
    assert chosen(Placement(), it, fleet_of(small, large)).worker == "large"
    assert chosen(Placement(), it, fleet_of(small, replace(large, credit=Cost(0, 0, 0)))).worker is None
    assert chosen(Placement(), it, fleet_of(small)).worker == "small"
    assert (
        chosen(Placement(PlacementSettings(long_prompts=False)), it, fleet_of(small, large)).worker == "small"
    )


def test_a_slice_of_slots_is_left_for_short_requests() -> None:
    fleet = fleet_of(worker("w", sequences=56, credit=Cost(8000, 8, 10_000)))
    short = ticket(100, expected_output=10)
    assert chosen(Placement(), ticket(100), fleet).worker is None
    assert chosen(Placement(), short, fleet).worker == "w"
    assert chosen(Placement(PlacementSettings(short_slice=0.0)), ticket(100), fleet).worker == "w"
    fleet.put(worker("w", sequences=55, credit=Cost(8000, 9, 10_000)))
    assert chosen(Placement(), ticket(100), fleet).worker == "w"


def test_required_labels_filter_and_preferred_ones_prefer() -> None:
    fleet = fleet_of(worker("us", labels=US), worker("eu", labels=EU, sequences=9))
    placement = Placement()
    assert chosen(placement, ticket(labels=EU), fleet).worker == "eu"
    assert chosen(placement, ticket(preferred_labels=EU), fleet).worker == "eu"
    fleet.put(closed("eu", labels=EU))
    assert chosen(placement, ticket(labels=EU), fleet).worker is None
    assert chosen(placement, ticket(preferred_labels=EU), fleet).worker == "us"
    fleet.put(worker("us", labels=EU))
    assert chosen(placement, ticket(labels=EU), fleet).worker == "us"


def test_workers_that_can_never_run_it_are_not_asked() -> None:
    fleet = fleet_of(worker("short", max_tokens=100), worker("barred"), worker("plain"))
    it = ticket(barred=frozenset({"barred", "gone"}))
    assert chosen(Placement(), it, fleet).worker == "plain"
    assert chosen(Placement(), replace(it, capabilities=frozenset({"grammar"})), fleet).worker is None


claims = st.one_of(
    st.none(),
    st.builds(StepModel, *[st.sampled_from([0.0, -1.0, nan, inf, 1e-30, 1e-4, 1e30, 2e-3])] * 6),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(claims, min_size=1, max_size=4), st.integers(3, 9))
def test_a_worker_that_reports_nonsense_takes_no_more_than_a_bounded_share(
    lies: list[StepModel | None], honest: int
) -> None:
    """Believed speeds are positive and finite, and nobody is believed far faster than the pool."""
    lies = lies[: honest - 1]
    fleet = fleet_of(
        *(worker(f"honest{number}") for number in range(honest)),
        *(worker(f"liar{number}", step_model=lie) for number, lie in enumerate(lies)),
    )
    speeds = fleet.speeds
    assert np.isfinite(speeds.models).all()
    assert (speeds.token_s > 0).all()
    assert (speeds.slowness > 0).all()
    honest_s = PRIOR.a / 2048 + PRIOR.b
    assert speeds.token_s.min() >= honest_s / MOST_FASTER * (1 - 1e-9)
    assert speeds.token_s[:honest] == pytest.approx(honest_s)
    assert speeds.slowness[:honest] == pytest.approx(1.0)
    assert chosen(Placement(), ticket(), fleet).worker is not None


def test_before_any_worker_has_told_its_speed_all_count_as_equal() -> None:
    fleet = fleet_of(worker("a", step_model=None, sequences=2), worker("b", step_model=None))
    assert chosen(Placement(), ticket(), fleet).worker == "b"
    assert fleet.model_of(0) == PRIOR


def test_a_worker_without_a_model_counts_as_one_of_the_pools_middle() -> None:
    fast = PRIOR._replace(a=PRIOR.a / 5, b=PRIOR.b / 5, e=PRIOR.e / 5)
    fleet = fleet_of(
        worker("a", step_model=fast), worker("b", step_model=fast), worker("new", step_model=None)
    )
    assert fleet.model_of(2) == pytest.approx(fast)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 50)), max_size=60))
def test_the_fleets_arrays_say_what_its_views_say(changes: list[tuple[int, int, int]]) -> None:
    fleet, placement = Fleet(), Placement()
    for number, what, load in changes:
        key = f"w{number}"
        if what == 0:
            fleet.drop(key)
        elif what == 1:
            fleet.put(worker(key, sequences=load, ready=load % 3 > 0, credit=Cost(load * 100, load % 4, 900)))
        elif fleet.any_open:
            it = ticket(640)
            choice = chosen(placement, it, fleet)
            if choice.worker is not None:
                placement.book(choice, it, fleet, 0.0)
        for view in fleet:
            position = fleet.index.positions[view.key]
            assert fleet.at(position) is view
            assert fleet.sequences[position] == view.sequences
            assert fleet.waiting_tokens[position] == view.waiting_tokens
            assert bool(fleet.open[position]) == view.open()
            assert bool(fleet.affordable(Cost(1, 1, 901))[position]) == view.affords(Cost(1, 1, 901))
        there = {fleet.index.positions[view.key] for view in fleet}
        assert not fleet.ready[[each for each in range(fleet.index.width) if each not in there]].any()


@pytest.mark.parametrize(
    ("fault", "settings_"),
    [
        ("warm_share", PlacementSettings(warm_share=1.5)),
        ("short_slice", PlacementSettings(short_slice=-0.1)),
        ("patience_s", PlacementSettings(patience_s=(2.0, 1.0))),
        ("warm_queue_s", PlacementSettings(warm_queue_s=nan)),
        ("tie_share", PlacementSettings(tie_share=nan)),
    ],
)
def test_settings_that_cannot_hold_are_named(fault: str, settings_: PlacementSettings) -> None:
    faults = settings_.validate()
    assert len(faults) == 1
    assert faults[0].startswith(fault)
    assert PlacementSettings().validate() == []


@pytest.mark.parametrize("seed", range(200))
def test_the_only_worker_is_chosen_as_beside_one_that_takes_nothing(seed: int) -> None:
    draw = random.Random(seed)
    values = {
        "sequences": draw.choice([0, 5, 60]),
        "waiting_tokens": draw.choice([0, 5_000, 500_000]),
        "credit": Cost(draw.choice([0, 8192]), draw.choice([0, 1, 64]), draw.choice([3, 120, 10_000])),
        "max_tokens": draw.choice([5_000, 100_000]),
        "labels": draw.choice([frozenset(), EU]),
        "ready": draw.random() < 0.9,
    }
    digests = chain(draw.choice([1, 90]))
    labels, output = draw.choice([frozenset(), EU]), draw.choice([10, 500])
    it = ticket(draw.choice([100, 6_000, 60_000]), digests, labels=labels, expected_output=output)
    choices, kept = [], draw.choice([0, 1, 85])
    for others in ((), (closed("other", ready=False),)):
        fleet = fleet_of(worker("w", **values), *others)
        fleet.index.stored("w", digests[:kept])
        choices.append(chosen(Placement(), it, fleet))
    assert choices[0] == choices[1]
