"""Errors of single steps, as they are read from what an engine publishes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.prediction import Errors
from services.worker.scheduler.budget import SHORTEST, StepModel
from services.worker.scheduler.step import StepCost

STEPS = st.tuples(st.integers(1, 2000), st.integers(0, 64), st.floats(1e-3, 1.0))


@given(st.lists(STEPS, min_size=2, max_size=150))
def test_each_error_is_that_of_the_prediction_made_before_the_step(
    steps: list[tuple[int, int, float]],
) -> None:
    model, errors, wanted = StepModel(), Errors(), []
    errors.note(model.state())
    for tokens, decodes, seconds in steps:
        cost = StepCost(1.0, float(tokens), tokens * tokens / 2.0, 100.0 * decodes, float(decodes))
        predicted = model.predict(cost) / model.state().quantile
        learned_s = max(seconds, SHORTEST * predicted)
        wanted.append(abs(learned_s - predicted) / learned_s)
        model.observe(cost, seconds)
        errors.note(model.state())
        errors.note(model.state())  # a heartbeat between two steps
    assert errors.values == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert errors.mean == pytest.approx(sum(wanted) / len(wanted))


def test_states_that_skip_a_step_tell_nothing() -> None:
    model, errors = StepModel(), Errors()
    errors.note(model.state())
    for _ in range(2):
        model.observe(StepCost(1.0, 1.0, 0.0, 1.0, 1.0), 0.01)
    errors.note(model.state())
    assert errors.values == []
