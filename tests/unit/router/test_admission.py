"""Who is let in: the ramp, what is infeasible, what would queue, and what each refusal says."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import (
    ClassPolicy,
    Cost,
    LatencyClass,
    PolicySettings,
    Prediction,
    QueueLimits,
    RefusalKind,
    Scheduler,
)
from services.router.policy.admission import Outlook, Thinning, admit, thinned
from services.router.policy.budget import InteractiveBudget
from tests.support.policy_values import FAST, make_ticket, make_worker

I, S, B = LatencyClass  # noqa: E741
LIMITS = QueueLimits(100, 1 << 20)
CALM = Outlook(
    workers=True,
    opening=False,
    headroom=0.0,
    coming=0.0,
    predict=partial(Prediction, 0.1, 0.2),
    queue_s=0.0,
    lone_s=0.1,
    lone_first_s=0.05,
    cost_s=0.2,
    tenant_requests=0,
    tenant_bytes=0,
)


def refused(
    latency_class: LatencyClass, headroom: float, *, sheddable: bool = False, count: int = 2000
) -> float:
    """The share of requests that a used head-room has refused."""
    outlook = CALM._replace(headroom=headroom)
    tickets = (make_ticket(number, latency_class, sheddable=sheddable) for number in range(count))
    return sum(admit(each, outlook, PolicySettings(), LIMITS, 0.0) is not None for each in tickets) / count


@pytest.mark.parametrize(("place", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (3.0, 1.0)])
def test_the_ramp_takes_what_may_be_shed_and_nothing_else(place: float, share: float) -> None:
    low, high = PolicySettings().sheddable_ramp
    headroom = low + place * (high - low)
    for each in (S, I):
        assert refused(each, headroom, sheddable=True) == pytest.approx(share, abs=0.01)
        assert refused(each, headroom) == 0.0


@pytest.mark.parametrize(("offered", "forecast"), [(0.9, True), (1.15, True), (9.0, True), (9.0, False)])
def test_as_much_is_shed_as_brings_what_comes_to_its_limit(offered: float, forecast: bool) -> None:
    policy = PolicySettings(forecast=forecast)
    thinning, count = Thinning(policy), 4000
    hit = [0]
    for number in range(count):
        coming = offered * (1 - sum(hit[-400:]) / len(hit[-400:]))
        its = make_ticket(number, I, sheddable=number % 10 < 3)
        refusal = admit(its, CALM._replace(coming=coming), policy, LIMITS, number / 50, thinning)
        hit.append(int(refusal is not None))
        assert refusal is None or its.sheddable
    expected = min(max(1 - policy.coming_limit / offered, 0.0), 0.3) * forecast
    assert sum(hit[1000:]) / len(hit[1000:]) == pytest.approx(expected, abs=0.03)


def test_batch_work_is_held_whatever_the_load_is() -> None:
    assert refused(B, 100.0, sheddable=True) == 0.0


@settings(deadline=None)
@given(st.floats(0.0, 1.0), st.integers(0, 10**9), st.integers(1, 7), st.integers(50, 400))
def test_any_run_of_requests_loses_very_nearly_its_share(
    share: float, start: int, stride: int, count: int
) -> None:
    """Also every second or third request of a caller: nobody can dodge by when it sends."""
    hit = sum(thinned(start + stride * step, share) for step in range(count))
    assert abs(hit - share * count) <= 8 + 0.02 * count


@pytest.mark.parametrize("latency_class", [I, S])
def test_what_may_not_be_shed_is_refused_only_when_nobody_would_wait_so_long(
    latency_class: LatencyClass,
) -> None:
    bound_s = PolicySettings().classes[latency_class].refused_after_s
    for first_s, expected in ((0.9 * bound_s, None), (1.1 * bound_s, RefusalKind.OVERLOADED)):
        outlook = CALM._replace(headroom=9.0, predict=partial(Prediction, first_s, first_s))
        refusal = admit(make_ticket(1, latency_class), outlook, PolicySettings(), LIMITS, 0.0)
        assert (refusal.kind if refusal else None) is expected
        if refusal:
            assert refusal.retry_s == pytest.approx(min(first_s, 60.0)), "when what waits now was served"


def test_what_could_start_at_once_is_not_refused_for_what_its_prompt_takes() -> None:
    late = CALM._replace(headroom=9.0, predict=partial(Prediction, 0.0, 24.0), opening=True)
    assert admit(make_ticket(1, I), late, PolicySettings(), LIMITS, 0.0) is None


def test_a_target_that_a_lone_request_cannot_keep_is_no_overload() -> None:
    slow = CALM._replace(predict=partial(Prediction, 0.0, 4.0), lone_first_s=3.9, opening=True)
    assert admit(make_ticket(1, I), slow, PolicySettings(), LIMITS, 0.0) is None


@pytest.mark.parametrize("latency_class", list(LatencyClass))
def test_a_deadline_that_cannot_be_met_is_refused_at_once(latency_class: LatencyClass) -> None:
    outlook = CALM._replace(predict=partial(Prediction, 5.0, 5.1), lone_s=2.0)
    for deadline_s, expected in (
        (6.9, RefusalKind.DEADLINE_INFEASIBLE),
        (7.1, None),
        (inf, None),
        (None, None),
    ):
        its = make_ticket(1, latency_class, deadline_s=deadline_s)
        loose = PolicySettings(admission=False)
        refusal = admit(its, outlook, loose, LIMITS, 0.0)
        assert (refusal.kind if refusal else None) is expected
        if refusal:
            assert refusal.retry_s is not None
            assert 0 < refusal.retry_s <= 60


def test_a_deadline_that_no_idle_mesh_would_meet_is_not_to_be_tried_again() -> None:
    """What counts is the time that it was given, not what is left of it now."""
    outlook = CALM._replace(predict=partial(Prediction, 5.0, 5.1), lone_s=2.0)
    for deadline_s, again in ((1.9, False), (2.1, True)):
        its = make_ticket(1, I, deadline_s=deadline_s)
        refusal = admit(its, outlook, PolicySettings(), LIMITS, 0.5)
        assert refusal is not None
        assert refusal.kind is RefusalKind.DEADLINE_INFEASIBLE
        assert (refusal.retry_s is not None) is again


def test_a_deadline_that_the_queue_cannot_meet_is_to_be_tried_when_so_much_of_it_has_gone() -> None:
    outlook = CALM._replace(queue_s=29.9, lone_s=0.1)
    refusal = admit(make_ticket(1, S, deadline_s=8.0), outlook, PolicySettings(), LIMITS, 0.0)
    assert refusal is not None
    assert refusal.retry_s == pytest.approx(22.0)


def test_what_would_wait_is_refused_when_it_was_not_to() -> None:
    its = make_ticket(1, I, do_not_queue=True)
    kinds = {
        (workers, opening): admit(
            its, CALM._replace(workers=workers, opening=opening), PolicySettings(), LIMITS, 0.0
        )
        for workers, opening in ((True, True), (True, False), (False, False))
    }
    assert kinds[True, True] is None
    assert kinds[True, False] is not None
    assert kinds[True, False].kind is RefusalKind.WOULD_QUEUE
    assert kinds[False, False] is not None
    assert kinds[False, False].kind is RefusalKind.NO_WORKER


def test_who_finds_no_worker_is_told_what_one_would_need() -> None:
    its = make_ticket(
        1, I, model="m", labels=frozenset({("pool", "chat")}), capabilities=frozenset({"grammar"})
    )
    assert its.unserved == (
        "no worker is there that can run this request of model 'm': it needs "
        f"room for {its.total_tokens} tokens, the label pool=chat, the capability grammar"
    )


def test_an_empty_mesh_refuses_nothing_that_may_wait() -> None:
    it = Scheduler()
    for latency_class in LatencyClass:
        its = make_ticket(1, latency_class, deadline_s=0.5, sheddable=True)
        assert it.admit(its, 0.0) is None, "it waits as long as its class is patient"


def test_one_large_request_may_wait_whatever_its_bytes() -> None:
    its = make_ticket(1, S, queued_bytes=LIMITS.bytes + 1)
    assert admit(its, CALM, PolicySettings(), LIMITS, 0.0) is None
    full = CALM._replace(tenant_requests=1, tenant_bytes=1)
    refusal = admit(its, full, PolicySettings(), LIMITS, 0.0)
    assert refusal is not None
    assert refusal.kind is RefusalKind.TENANT_QUEUE_FULL


def test_an_idle_mesh_lets_everybody_in_even_a_slow_one() -> None:
    """A machine that takes a second for a prompt is slow, not overloaded."""
    slow = FAST._replace(a=0.2, b=1e-3)
    it = Scheduler()
    it.worker_changed(make_worker(step_model=slow))
    for number in range(50):
        its = make_ticket(number, S, prompt=1500, sheddable=True)
        assert it.admit(its, 0.0) is None
        it.submit(its, 0.0)
        assert it.next(0.0) is not None
        it.ended(number)
        it.worker_changed(make_worker(step_model=slow))


def test_head_room_is_used_up_by_waiting_prefill_decodes_and_memory() -> None:
    busy = {
        "queued prefill": make_worker(waiting_tokens=25_000, sequences=3),
        "decodes": make_worker(sequences=60, step_model=FAST._replace(e=6e-4)),
        "memory": make_worker(sequences=3, free_blocks=100),
    }
    for why, view in busy.items():
        it = Scheduler()
        it.worker_changed(make_worker())
        assert it.headroom("m", I) < 0.1
        it.worker_changed(view)
        assert it.headroom("m", I) > 0.8, why


def test_what_waits_in_the_router_uses_head_room_and_batch_work_does_not() -> None:
    for latency_class, expected in ((S, True), (B, False)):
        it = Scheduler()
        it.worker_changed(make_worker(slots=0))
        for number in range(200):
            it.submit(make_ticket(number, latency_class, prompt=5000), 0.0)
        assert (it.headroom("m", I) > 1.0) is expected


def test_batch_work_on_the_workers_uses_no_head_room() -> None:
    """It gives way: neither its prompts, nor its decodes, nor its memory may shut others out."""
    it, slow = Scheduler(), FAST._replace(e=6e-4)
    it.worker_changed(make_worker(credit=Cost(10**7, 60, 10**5), step_model=slow))
    for number in range(40):
        it.submit(make_ticket(number, B, prompt=16_000), 0.0)
        assert it.next(0.0) is not None
        if number < 20:
            it.streamed(number, 5, 1.0)
    busy = {"sequences": 40, "waiting_tokens": 320_000, "free_blocks": 10, "running_context": 320_000}
    loaded = make_worker(slots=1, step_model=slow, **busy)
    it.worker_changed(replace(loaded, batch_sequences=40, batch_waiting_tokens=320_000))
    assert it.headroom("m", I) < 0.3
    for number in range(40):
        it.ended(number)
    it.worker_changed(loaded)
    assert it.headroom("m", I) > 0.95, "the same load without a batch request of ours"


def kept_of(offered: dict[str, float], refused: float, *, fair: bool = True) -> dict[str, float]:
    """Requests a turn that each tenant keeps, of those that it offers, where a share of all is refused."""
    thinning = Thinning(PolicySettings(fair_thinning=fair))
    kept, number, due = dict.fromkeys(offered, 0.0), 0, dict.fromkeys(offered, 0.0)
    for turn in range(3000):
        for tenant, rate in offered.items():
            due[tenant] += rate
            while due[tenant] >= 1:
                due[tenant], number = due[tenant] - 1, number + 1
                its = make_ticket(number, S, tenant, sheddable=True)
                taken = thinning.takes(its, 0.1, refused, turn * 0.1)
                kept[tenant] += not taken and turn >= 1000
    return {tenant: count / 2000 for tenant, count in kept.items()}


def test_who_asks_for_little_is_not_shed_for_anothers_sake() -> None:
    kept = kept_of({"flood": 3.0, "light": 0.25}, 0.5)
    assert kept["light"] == pytest.approx(0.25, rel=0.02)
    assert kept["flood"] + kept["light"] == pytest.approx(0.5 * 3.25, rel=0.05), "as much is shed in all"
    assert kept_of({"flood": 3.0, "light": 0.25}, 0.5, fair=False)["light"] < 0.15


def test_even_where_all_is_refused_who_asks_for_little_is_spared() -> None:
    kept = kept_of({"flood": 6.0, "light": 0.1}, 1.0)
    assert kept["light"] == pytest.approx(0.1, rel=0.05)
    assert kept["flood"] == 0.0
    assert kept_of({"lone": 3.0}, 1.0)["lone"] == 0.0


def test_what_is_kept_is_shared_evenly_by_those_that_ask_for_more() -> None:
    kept = kept_of({"a": 3.0, "b": 1.0}, 0.6)
    assert kept["a"] == pytest.approx(0.8, rel=0.1)
    assert kept["b"] == pytest.approx(0.8, rel=0.1)


# the interactive budget


def contended(tenants: dict[str, float], seconds: float, headroom: float, **more: object) -> dict[str, float]:
    """GPU seconds a second that each tenant got as INTERACTIVE, of what it asked for, on one worker."""
    budget, got, step = InteractiveBudget(PolicySettings(**more)), dict.fromkeys(tenants, 0.0), 0.02  # type: ignore[arg-type]
    now = 0.0
    while now < seconds:
        now += step
        for tenant, rate in tenants.items():
            its = make_ticket(1, I, tenant, weight=4.0 if tenant == "heavier" else 1.0)
            budget.asked(its, rate * step, now)
            if budget.allows(its, rate * step, headroom, 1, now) and now > seconds / 2:
                got[tenant] += rate * step
    return {tenant: value / (seconds / 2) for tenant, value in got.items()}


def test_a_lone_tenant_on_an_idle_mesh_may_have_everything() -> None:
    assert contended({"lone": 5.0}, 200.0, 0.2)["lone"] == pytest.approx(5.0, rel=0.01)


def test_a_lone_tenant_on_a_busy_mesh_competes_with_nobody_until_somebody_asks_for_something() -> None:
    budget = InteractiveBudget(PolicySettings())
    lone, other = make_ticket(1, I, "lone"), make_ticket(2, LatencyClass.STANDARD, "other")
    for second in range(200):
        budget.asked(lone, 5.0, float(second))
        assert budget.allows(lone, 5.0, 0.9, 1, float(second))
    budget.asked(other, 0.1, 200.0)
    assert not budget.allows(lone, 5.0, 0.9, 1, 200.0)
    assert not budget.allows(lone, 5.0, 0.9, 1, 230.0)


def test_who_streams_everything_leaves_their_parts_to_those_that_ask_plainly() -> None:
    budget, got, step = InteractiveBudget(PolicySettings()), 0.0, 0.02
    for turn in range(30_000):
        now = turn * step
        for light in range(5):
            budget.asked(make_ticket(1, LatencyClass.STANDARD, f"light{light}"), 0.08 * step, now)
        its = make_ticket(2, I, "streams")
        budget.asked(its, 2.0 * step, now)
        got += budget.allows(its, 2.0 * step, 0.9, 1, now) * 2.0 * step * (turn >= 15_000)
    shares = PolicySettings().shares
    left = shares[I] + shares[LatencyClass.STANDARD] - 5 * 0.08
    assert got / 300.0 == pytest.approx(left, rel=0.1)


def test_under_contention_nobody_gets_more_than_its_part_and_the_rest_is_shared() -> None:
    got = contended({"light": 0.1, "a": 2.0, "b": 2.0}, 600.0, 0.9)
    assert got["light"] == pytest.approx(0.1, rel=0.01), "who asks for little gets all of it"
    assert got["a"] == pytest.approx(0.3, rel=0.1)
    assert got["b"] == pytest.approx(0.3, rel=0.1)


def test_a_budget_grows_with_the_tenants_weight() -> None:
    got = contended({"heavier": 2.0, "a": 2.0}, 600.0, 0.9)
    assert got["heavier"] == pytest.approx(4 * got["a"], rel=0.15)


def test_budgets_can_be_switched_off() -> None:
    assert contended({"a": 9.0}, 50.0, 2.0, interactive_budget=False)["a"] == pytest.approx(9.0, rel=0.01)


def test_streaming_alone_does_not_make_a_flood_interactive() -> None:
    it = Scheduler()
    it.worker_changed(make_worker(slots=0, waiting_tokens=20_000, sequences=8))
    kept = {"flood": 0, "light": 0}
    for number in range(3000):
        now = number * 0.01
        tenant = "light" if number % 50 == 0 else "flood"
        its = make_ticket(number, I, tenant, prompt=4000, arrival_s=now)
        kept[tenant] += it.within_budget(its, now)
    assert kept["light"] == 60
    assert kept["flood"] < 0.5 * 2940


# what contradicts


def classes(**more: ClassPolicy) -> dict[LatencyClass, ClassPolicy]:
    known = dict(PolicySettings().classes)
    return known | {LatencyClass[name.upper()]: value for name, value in more.items()}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"classes": classes(batch=ClassPolicy(share=-5.0))}, "batch.share"),
        ({"classes": classes(batch=ClassPolicy(share=float("nan")))}, "batch.share"),
        ({"classes": {each: ClassPolicy(share=0.0) for each in LatencyClass}}, "share"),
        ({"classes": {I: ClassPolicy(share=1.0), S: ClassPolicy(share=1.0)}}, "BATCH"),
        ({"classes": classes() | {"urgent": ClassPolicy(share=1.0)}}, "urgent"),
        ({"classes": classes(interactive=ClassPolicy(share=1.0, ttft_s=0.1, tpot_s=0.5))}, "tpot_s"),
        ({"classes": classes(standard=ClassPolicy(share=1.0, ttft_s=0.1))}, "standard.ttft_s"),
        ({"classes": classes(standard=ClassPolicy(share=1.0, ttft_s=-1.0))}, "standard.ttft_s"),
        ({"classes": classes(standard=ClassPolicy(share=1.0, ttft_s=2.0, aging_s=1.0))}, "standard.aging_s"),
        ({"classes": classes(interactive=ClassPolicy(share=1.0, patience_s=0.0))}, "patience_s"),
        ({"prompt_weight": -1.0}, "prompt_weight"),
        ({"output_weight": float("inf")}, "output_weight"),
        ({"prompt_weight": 0.0, "output_weight": 0.0, "cached_weight": 0.0}, "prompt_weight, output_weight"),
        ({"cached_weight": 2.0}, "cached_weight"),
        ({"sheddable_ramp": (0.8, 0.5)}, "sheddable_ramp"),
        ({"coming_limit": 0.0}, "coming_limit"),
        (
            {"classes": classes(interactive=ClassPolicy(share=1.0, ttft_s=1.0, refused_after_s=0.5))},
            "refused",
        ),
        ({"tenant_look_ahead": 64}, "tenant_look_ahead"),
        ({"restore_after": 0.5}, "restore_after"),
        ({"round_s": 0.0}, "round_s"),
        ({"tenant_queued_requests": 0}, "tenant_queued_requests"),
    ],
)
def test_what_contradicts_is_refused_in_one_line_that_names_it(wrong: dict[str, object], named: str) -> None:
    faults = PolicySettings(**wrong).validate()  # type: ignore[arg-type]
    assert any(named in fault for fault in faults)
    assert all("\n" not in fault for fault in faults)
    with pytest.raises(ValueError, match=re.escape("\n".join(faults))):
        Scheduler(PolicySettings(**wrong))  # type: ignore[arg-type]


def test_the_defaults_contradict_nothing() -> None:
    assert PolicySettings().validate() == []
