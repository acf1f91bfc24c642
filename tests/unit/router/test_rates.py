"""Token buckets: what passes in any time is bounded, and a debt is waited for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import Gcra

RATES = st.floats(0.01, 1000)


@settings(deadline=None)
@given(rate=RATES, burst=st.integers(1, 100), gaps=st.lists(st.floats(0, 10), max_size=200))
def test_no_more_passes_than_burst_and_rate_allow(rate: float, burst: int, gaps: list[float]) -> None:
    bucket, now, passed = Gcra(rate, burst), 0.0, 0
    for gap in gaps:
        now += gap
        if bucket.wait(now) == 0:
            bucket.take(now, 1)
            passed += 1
    assert passed <= burst + rate * now + 1e-6 * (1 + rate * now) + 1


@settings(deadline=None)
@given(rate=RATES, burst=st.integers(1, 100))
def test_a_whole_burst_passes_at_once_and_no_more(rate: float, burst: int) -> None:
    bucket = Gcra(rate, burst)
    for _ in range(burst):
        assert bucket.wait(0.0) == 0
        bucket.take(0.0, 1)
    assert bucket.wait(0.0) > 0


@settings(deadline=None)
@given(rate=RATES, burst=st.integers(1, 100), units=st.floats(1, 1000))
def test_what_wait_says_is_enough(rate: float, burst: int, units: float) -> None:
    bucket = Gcra(rate, burst)
    bucket.take(0.0, units)
    wait = bucket.wait(0.0)
    assert bucket.wait(wait * (1 + 1e-9) + 1e-9) == 0


def test_a_request_larger_than_the_burst_is_late_not_impossible() -> None:
    bucket = Gcra(10.0, 10)
    assert bucket.wait(0.0) == 0
    bucket.take(0.0, 100)
    assert 9.0 <= bucket.wait(0.0) <= 9.2
