"""Latencies are those of the tokens' times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.tracks import Track, gaps_s, percentile, tpots_s, ttfts_s

TRACK = Track(submitted_s=10.0, token_s=[10.5, 10.6, 10.9, 11.0])


def test_latencies_of_one_track() -> None:
    assert ttfts_s([TRACK]) == [pytest.approx(0.5)]
    assert tpots_s([TRACK]) == [pytest.approx(0.5 / 3)]
    assert gaps_s([TRACK]) == [pytest.approx(gap) for gap in (0.1, 0.3, 0.1)]


def test_only_gaps_within_a_window_count() -> None:
    assert gaps_s([TRACK], start_s=10.55, end_s=10.95) == [pytest.approx(0.3)]


def test_requests_without_tokens_have_no_latencies() -> None:
    empty, single = Track(1.0), Track(1.0, token_s=[2.0])
    assert ttfts_s([empty, single]) == [1.0]
    assert tpots_s([empty, single]) == []
    assert gaps_s([empty, single]) == []
    assert percentile([], 99) == 0.0


@given(st.lists(st.floats(0.0, 1e3), min_size=1), st.floats(0.0, 100.0))
def test_a_percentile_lies_among_its_values(values: list[float], part: float) -> None:
    assert min(values) <= percentile(values, part) <= max(values)


def test_percentiles_of_a_hundred() -> None:
    values = [float(value) for value in range(101)]
    assert (percentile(values, 50), percentile(values, 99)) == (50.0, 99.0)
