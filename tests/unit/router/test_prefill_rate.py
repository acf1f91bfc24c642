"""How much of the pool's time goes into prompts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.policy.occupancy import PrefillRate


def test_a_steady_rate_is_learnt() -> None:
    rate = PrefillRate()
    for tick in range(100):
        rate.computed(500)
        rate.look(tick * 0.1)
    assert rate.tokens_per_s == pytest.approx(5000, rel=0.02)


def test_it_fades_when_nothing_is_computed() -> None:
    rate = PrefillRate()
    for tick in range(50):
        rate.computed(500)
        rate.look(tick * 0.1)
    for now in (10.0, 40.0):
        rate.look(now)
    assert rate.tokens_per_s < 1.0


def test_looking_often_changes_nothing() -> None:
    seldom, often = PrefillRate(), PrefillRate()
    for tick in range(60):
        for rate in (seldom, often):
            rate.computed(300)
        often.look(tick * 0.2)
        often.look(tick * 0.2 + 0.02)
        seldom.look(tick * 0.2)
    assert often.tokens_per_s == pytest.approx(seldom.tokens_per_s)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.lists(st.floats(), min_size=1))
def test_a_clock_that_jumps_and_nonsense_never_make_it_negative_or_infinite(
    times: list[float], amounts: list[float]
) -> None:
    rate = PrefillRate()
    for now, tokens in zip(times, amounts, strict=False):
        rate.computed(tokens)
        rate.look(now)
        assert 0.0 <= rate.tokens_per_s < 1e12


def test_a_jump_back_forgets_only_what_was_not_looked_at() -> None:
    rate = PrefillRate()
    for earlier, later in pairwise([0.0, 1.0, 2.0]):
        rate.computed(1000 * (later - earlier))
        rate.look(later)
    before = rate.tokens_per_s
    rate.computed(1e6)
    rate.look(-50.0)
    assert rate.tokens_per_s == before
