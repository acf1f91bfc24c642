"""The class of a request that names none, and its shape: DESIGN §2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import LatencyClass, classify, log2_bucket
from services.router.policy.classify import OutputHistory

I, S, B = LatencyClass  # noqa: E741
CLASSES = st.sampled_from(list(LatencyClass))


@pytest.mark.parametrize(
    ("streaming", "deadline_s", "expected"),
    [
        (True, None, I),
        (True, 3600.0, I),
        (False, 14.9, I),
        (False, 15.0, S),
        (False, None, S),
        (False, 600.0, S),
        (False, 600.1, B),
    ],
)
def test_a_class_is_inferred_from_streaming_and_deadline(
    streaming: bool, deadline_s: float | None, expected: LatencyClass
) -> None:
    assert classify(None, streaming=streaming, deadline_s=deadline_s, most_urgent=I) is expected


@settings(deadline=None)
@given(asked=CLASSES, cap=CLASSES, streaming=st.booleans())
def test_a_named_class_holds_as_far_as_the_tenant_may(
    asked: LatencyClass, cap: LatencyClass, streaming: bool
) -> None:
    assert classify(asked, streaming=streaming, deadline_s=None, most_urgent=cap) is max(asked, cap)


@settings(deadline=None)
@given(st.integers(1, 2**31))
def test_a_bucket_holds_the_numbers_between_two_powers(count: int) -> None:
    bucket = log2_bucket(count)
    assert 2**bucket <= count < 2 ** (bucket + 1)


def test_nothing_counts_as_one() -> None:
    assert log2_bucket(0) == 0


def test_history_moves_towards_what_answers_were() -> None:
    history = OutputHistory()
    assert history.expect("a", "m", S, 200) == 200
    for _ in range(100):
        history.record("a", "m", S, 20)
    assert history.expect("a", "m", S, 200) == 20
    assert history.expect("b", "m", S, 200) == 200
    assert history.expect("a", "m", S, 5) == 5
