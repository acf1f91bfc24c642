"""The step-time model learns what steps cost and stays on the safe side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.scheduler.budget import StepModel, StepModelState
from services.worker.scheduler.step import StepCost

TRUTH = np.array([1e-3, 2.75e-5, 1.2e-9, 6e-9, 2e-5])  # an H100 with 8 billion parameters, about


def random_cost(random: np.random.Generator) -> StepCost:
    decodes, chunk = int(random.integers(0, 64)), int(random.choice([0, 0, 64, 512, 2048]))
    done = int(random.integers(0, 4096))
    context = decodes * int(random.integers(100, 3000))
    return StepCost(1.0, max(1, decodes + chunk), chunk * (done + chunk / 2), context, decodes)


def seconds_of(cost: StepCost) -> float:
    return float(TRUTH @ np.array(cost))


def trained(noise: float, steps: int = 2000) -> StepModel:
    random = np.random.default_rng(3)
    model = StepModel()
    for _ in range(steps):
        cost = random_cost(random)
        model.observe(cost, seconds_of(cost) * float(np.exp(noise * random.standard_normal())))
    return model


def test_learns_a_linear_machine() -> None:
    model = trained(noise=0.0)
    assert np.array(model.state().coefficients) == pytest.approx(TRUTH, rel=0.05)


def test_error_stays_near_the_noise() -> None:
    assert trained(noise=0.05).state().error < 0.06


def test_predicts_an_upper_quantile() -> None:
    model = trained(noise=0.1)
    random = np.random.default_rng(4)
    costs = [random_cost(random) for _ in range(2000)]
    late = [seconds_of(c) * np.exp(0.1 * random.standard_normal()) > model.predict(c) for c in costs]
    assert 0.01 < np.mean(late) < 0.15


def test_follows_a_machine_that_becomes_slower() -> None:
    model = trained(noise=0.0)
    random = np.random.default_rng(5)
    for _ in range(3000):
        cost = random_cost(random)
        model.observe(cost, 2 * seconds_of(cost))
    cost = StepCost(1.0, 512.0, 512 * 256.0, 0.0, 0.0)
    assert model.predict(cost) == pytest.approx(2 * seconds_of(cost), rel=0.15)


@settings(max_examples=100, deadline=None)
@given(
    coefficients=st.tuples(*(st.floats(1e-9, 1e-3) for _ in range(5))),
    seconds=st.floats(1e-6, 1.0),
    done=st.integers(0, 100_000),
)
def test_tokens_within_fill_the_time_and_no_more(
    coefficients: tuple[float, float, float, float, float], seconds: float, done: int
) -> None:
    model = StepModel(StepModelState(coefficients, 1.2, 0.0, 0))
    count = model.tokens_within(seconds, done)
    nothing = StepCost(0.0, 0.0, 0.0, 0.0, 0.0)

    def taken(tokens: int) -> float:
        return model.predict(StepCost(0.0, tokens, tokens * (done + tokens / 2), 0.0, 0.0)) - model.predict(
            nothing
        )

    assert count == 0 or taken(count) <= seconds * (1 + 1e-6)
    assert count == 10**9 or taken(count + 1) > seconds * (1 - 1e-6)


def test_prediction_follows_a_neighbour_that_slows_all_steps_within_twenty() -> None:
    model = StepModel()
    rng = np.random.default_rng(11)
    for pace in [1.0] * 400 + [1.6] * 20:
        cost = StepCost(1.0, float(rng.integers(1, 512)), 0.0, float(rng.integers(0, 9000)), 4.0)
        model.observe(cost, pace * (3e-3 + 1e-4 * cost.tokens + 1e-7 * cost.context))
    cost = StepCost(1.0, 100.0, 0.0, 1000.0, 4.0)
    expected = 1.6 * (3e-3 + 1e-2 + 1e-4)
    state = model.state()
    assert sum(np.multiply(state.coefficients, cost)) == pytest.approx(expected, rel=0.12)
    assert model.predict(cost) == pytest.approx(state.quantile * sum(np.multiply(state.coefficients, cost)))


@pytest.mark.parametrize("factor", [3.0, 4.0, 8.0, 20.0])
def test_a_device_that_breaks_down_is_believed_within_a_hundred_steps_and_so_is_its_repair(
    factor: float,
) -> None:
    model, random = StepModel(), np.random.default_rng(5)
    decode = StepCost(1.0, 4.0, 0.0, 1200.0, 4.0)
    for pace, steps in ((1.0, 2000), (factor, 100), (1.0, 200)):
        for _ in range(steps):
            sequences = float(random.integers(1, 9))
            model.observe(StepCost(1.0, sequences, 0.0, 300.0 * sequences, sequences), pace * 7e-3)
        told = sum(np.multiply(model.state().coefficients, decode))
        assert told == pytest.approx(pace * 7e-3, rel=0.05)


def test_of_a_device_that_breaks_down_no_term_is_forgotten_that_its_steps_say_nothing_of() -> None:
    model = trained(noise=0.05)
    for _ in range(100):
        cost = StepCost(1.0, 4.0, 0.0, 1200.0, 4.0)
        model.observe(cost, 8.0 * seconds_of(cost))
    prefill = StepCost(1.0, 2048.0, 2048.0 * 1024, 0.0, 1.0)
    told = sum(np.multiply(model.state().coefficients, prefill))
    assert told == pytest.approx(8.0 * seconds_of(prefill), rel=0.15)


def test_a_model_that_expects_nothing_yet_learns_like_any_other() -> None:
    model = StepModel(StepModelState((0.0,) * 5, 1.0, 0.0, 0))
    for tokens in (1.0, 2.0, 3.0):
        model.observe(StepCost(1.0, tokens, 0.0, 0.0, 0.0), 0.5)
    assert model.predict(StepCost(1.0, 2.0, 0.0, 0.0, 0.0)) == pytest.approx(0.5, rel=0.5)


def test_a_pause_of_the_process_does_not_spoil_what_was_learned() -> None:
    """The step that it fell into looks endless; the one launched before it has long been done afterwards."""
    model, random = trained(noise=0.05), np.random.default_rng(8)
    for seconds in (2.5, 1e-4):
        model.observe(random_cost(random), seconds)
    for _ in range(30):
        cost = random_cost(random)
        model.observe(cost, seconds_of(cost))
    costs = [random_cost(random) for _ in range(100)]
    errors = [model.predict(each) / model.state().quantile / seconds_of(each) - 1 for each in costs]
    assert np.max(np.abs(errors)) < 0.1


@given(factor=st.floats(1.0, 1e4))
@settings(max_examples=20, deadline=None)
def test_a_model_that_expects_far_too_much_learns_better_within_a_hundred_steps(factor: float) -> None:
    costly = StepModelState(tuple(factor * TRUTH), 1.0, 0.0, 0)
    model, random = StepModel(costly), np.random.default_rng(9)
    for _ in range(100):
        cost = random_cost(random)
        model.observe(cost, seconds_of(cost))
    assert model.predict(cost) == pytest.approx(seconds_of(cost), rel=0.2)
