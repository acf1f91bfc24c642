"""The head-room that admitted work is going to use, from what comes."""

from __future__ import annotations

from math import inf, nan

import pytest

from services.router.policy.inflow import Inflow

CAPACITY = 10_000.0  # prompt tokens a second
ROOM = 0.8


def steady(tokens_per_s: float, decode_per_prefill: float) -> Inflow:
    inflow = Inflow()
    for _ in range(1000):
        inflow.ended(0.1, 0.1 * decode_per_prefill)
    for tick in range(600):
        inflow.prompts.computed(tokens_per_s / 10)
        inflow.prompts.look(tick / 10)
    return inflow


def test_work_is_prompts_and_the_outputs_that_they_bring() -> None:
    inflow = steady(4000.0, 0.5)
    assert inflow.used(CAPACITY, 0.0, ROOM) == pytest.approx(0.4 * 1.5 / ROOM, rel=0.01)
    assert steady(4000.0, 0.0).used(CAPACITY, 0.0, ROOM) == pytest.approx(0.4 / ROOM, rel=0.01)


def test_steps_settle_at_the_target_where_it_is_1() -> None:
    """The fixed cost of a step and what comes while it runs fill the step exactly."""
    fixed_s, target_s = 0.008, 0.04
    inflow = steady(4000.0, 1.0)
    used = inflow.used(CAPACITY, 0.0, 1.0 - fixed_s / target_s)
    step_s = fixed_s / (1.0 - 0.4 * 2.0)
    assert step_s == pytest.approx(target_s)
    assert used == pytest.approx(1.0, rel=0.01)


def test_what_waits_has_yet_to_come() -> None:
    inflow = steady(4000.0, 0.5)
    waiting = [inflow.used(CAPACITY, seconds, ROOM) for seconds in (0.0, 0.5, 2.0)]
    assert waiting == sorted(waiting)
    assert waiting[0] < waiting[-1]


def test_nothing_is_foreseen_before_anything_has_ended() -> None:
    inflow = Inflow()
    inflow.prompts.look(0.0)
    inflow.prompts.computed(1e6)
    inflow.prompts.look(1.0)
    assert inflow.used(CAPACITY, 9.0, ROOM) == 0.0


@pytest.mark.parametrize("seconds", [nan, inf, -1.0, 1e9])
def test_nonsense_changes_nothing(seconds: float) -> None:
    inflow = steady(4000.0, 0.5)
    before = inflow.used(CAPACITY, 0.0, ROOM)
    inflow.ended(seconds, 0.1)
    inflow.ended(0.1, seconds)
    assert inflow.used(CAPACITY, 0.0, ROOM) == before
