"""Costs, waits and first tokens in seconds, and that errors correct themselves."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import LatencyClass, PolicySettings, Scheduler
from services.router.policy.correction import Correction
from services.router.policy.pool import Pool
from services.router.policy.speed import StepModel
from tests.support.policy_values import FAST, make_ticket, make_worker

I, S, B = LatencyClass  # noqa: E741


def pool(workers: int = 1, slots: int = 0, **more: object) -> Pool:
    it = Pool(PolicySettings(**more))  # type: ignore[arg-type]
    for number in range(workers):
        it.fleet.put(make_worker(f"w{number}", slots))
    return it


def test_gpu_seconds_are_those_of_the_step_model() -> None:
    its = make_ticket(1, S, prompt=2048, expected_output=101)
    found = pool().predictor.estimate(its, uncached=2048)
    prefill_s = 2e-3 + 2048 * 2e-5 + 2048 * 1024 * 1e-10
    assert found.prefill_s == pytest.approx(prefill_s)
    token_s = 2e-5 + 1e-5 + (2048 + 50.5) * 1e-8 + 2e-3  # alone: all of a step's fixed cost
    assert found.total_s == pytest.approx(prefill_s + 100 * token_s)


def test_what_is_cached_costs_nothing_and_neighbours_share_a_steps_fixed_cost() -> None:
    its = make_ticket(1, S, prompt=2048, expected_output=101)
    it = pool()
    alone = it.predictor.estimate(its, 2048)
    assert it.predictor.estimate(its, 64).prefill_s < 0.2 * alone.prefill_s
    view = make_worker("w0", 0)
    view.sequences = 20
    it.fleet.put(view)
    assert it.predictor.estimate(its, 2048).total_s < 0.5 * alone.total_s


def test_a_wait_is_what_is_ahead_in_the_class_at_its_share_of_the_workers() -> None:
    waits = {}
    for workers in (1, 4):
        it = pool(workers)
        for number in range(10):
            it.submit(make_ticket(number, S, prompt=5000), 0.0)
        waits[workers] = it.raw_wait_s(make_ticket(99, S))
        assert waits[workers] == pytest.approx(it.queue.held[S].cost_s / workers, rel=0.01)
        it.submit(make_ticket(50, I), 0.0)
        contended = it.raw_wait_s(make_ticket(99, S))
        assert contended == pytest.approx(waits[workers] * 95 / 25, rel=0.01)


def test_a_light_tenant_does_not_wait_for_a_heavy_ones_backlog() -> None:
    it = pool()
    for number in range(50):
        it.submit(make_ticket(number, S, "heavy", prompt=5000), 0.0)
    assert it.raw_wait_s(make_ticket(99, S, "light")) == it.predictor.gap_s
    assert it.raw_wait_s(make_ticket(99, S, "heavy")) > 1.0


def test_nothing_is_predicted_where_no_worker_is_there() -> None:
    it = Pool(PolicySettings())
    assert it.predictor.predict(make_ticket(1, S), 100, 0.0) is None


@settings(deadline=None)
@given(st.floats(0.1, 8.0), st.floats(0.05, 20.0))
def test_a_steady_error_corrects_itself(ratio: float, scale: float) -> None:
    correction = Correction()
    for turn in range(200):
        predicted_s = scale * (1 + 0.3 * (turn % 3))
        correction.learn(predicted_s, ratio * predicted_s)
    for predicted_s in (scale, 1.6 * scale):
        actual_s = ratio * predicted_s
        assert correction.apply(predicted_s) == pytest.approx(actual_s, rel=0.15, abs=0.01)
    assert correction.error < 0.25


def test_a_delay_that_short_predictions_miss_is_not_multiplied_into_long_ones() -> None:
    correction = Correction()
    for _ in range(100):
        correction.learn(0.005, 0.205)
    assert correction.apply(0.005) == pytest.approx(0.205, rel=0.1)
    assert correction.apply(2.0) < 2.5


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=60))
def test_no_outcome_makes_a_correction_useless(outcomes: list[tuple[float, float]]) -> None:
    correction = Correction()
    for predicted_s, actual_s in outcomes:
        correction.learn(predicted_s, actual_s)
    assert 1 / 16.1 <= correction.factor <= 16.1
    assert 0 <= correction.error <= 1
    assert 0 <= correction.apply(1.0) <= 16.1 + 60


def test_predictions_follow_a_mesh_that_is_slower_than_it_says() -> None:
    """Each request takes four times as long as its worker's step model claims."""
    it, now, errors = Scheduler(), 0.0, []
    for number in range(150):
        now += 0.3
        it.submit(make_ticket(number, S, prompt=10_000, arrival_s=now), now)
        it.worker_changed(make_worker("w", 1))
        assignment = it.next(now)
        assert assignment is not None
        predicted_s = assignment.predicted.ttft_s
        lone_s = FAST.prefill_s(10_000)
        it.streamed(number, 1, now + 4 * lone_s)
        it.ended(number)
        errors.append(abs(predicted_s - 4 * lone_s) / (4 * lone_s))
    assert errors[0] > 0.5
    assert max(errors[-20:]) < 0.15
    assert it.accuracy("m", S).first_error < 0.15


def test_a_mesh_that_learns_nothing_can_be_asked_for() -> None:
    it = Scheduler(PolicySettings(learn_errors=False))
    it.worker_changed(make_worker("w", 4))
    for number in range(3):
        it.submit(make_ticket(number, S), 0.0)
        assignment = it.next(0.0)
        assert assignment is not None
        assert assignment.predicted.ttft_s < 0.1
        it.streamed(number, 1, 50.0)


@pytest.mark.parametrize(
    "claims",
    [
        StepModel(nan, inf, -inf, nan, nan, nan),
        StepModel(0, 0, 0, 0, 0, 0),
        StepModel(1e300, 1e300, 1e300, 1e300, 1e300, 1e300),
        StepModel(-1, -1, -1, -1, -1, -1),
    ],
    ids=["not numbers", "zero", "huge", "negative"],
)
def test_a_worker_that_talks_nonsense_changes_no_prediction_for_the_others(claims: StepModel) -> None:
    found = {}
    for liar in (False, True):
        it = pool(3, slots=4)
        if liar:
            it.fleet.put(make_worker("liar", 0, step_model=claims, ready=False))
        its = make_ticket(1, S, prompt=4000)
        found[liar] = (it.predictor.estimate(its, 4000), it.predictor.predict(its, 4000, 0.0))
    assert found[True][0].prefill_s == pytest.approx(found[False][0].prefill_s, rel=0.01)
    assert found[True][0].total_s == pytest.approx(found[False][0].total_s, rel=0.01)
    assert found[True][1] == pytest.approx(found[False][1], rel=0.01)
