"""How long requests of a broken session wait for its worker: as long as others would take for them."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.continuity.failover import computed_again_s

FAST = (0.1, 1e-5, 1e-9, 1e-8, 1e-5, 1.0)
SLOW = (0.1, 1e-3, 1e-7, 1e-6, 1e-3, 1.0)
LENGTHS = st.lists(st.integers(1, 100_000), max_size=50)


def models(*workers: tuple[float, ...]) -> np.ndarray:
    return np.array(workers, float).reshape(-1, 6).T


def test_steps_that_are_done_anyway_cost_nothing() -> None:
    assert computed_again_s([1], models(FAST)) == pytest.approx(1e-5, rel=1e-3)


def test_without_another_worker_there_is_nothing_to_be_gained_elsewhere() -> None:
    assert computed_again_s([1], models()) == inf


@given(LENGTHS, st.integers(1, 8))
def test_workers_share_it(lengths: list[int], count: int) -> None:
    alone_s = computed_again_s(lengths, models(SLOW))
    assert computed_again_s(lengths, models(*[SLOW] * count)) == pytest.approx(alone_s / count)


@given(LENGTHS, LENGTHS)
def test_more_and_slower_workers_take_longer(some: list[int], others: list[int]) -> None:
    assert computed_again_s(some + others, models(FAST)) >= computed_again_s(some, models(FAST))
    assert computed_again_s(some, models(SLOW)) >= computed_again_s(some, models(FAST))


def test_long_prompts_cost_more_than_their_tokens() -> None:
    assert computed_again_s([8000], models(SLOW)) > computed_again_s([4000, 4000], models(SLOW))
