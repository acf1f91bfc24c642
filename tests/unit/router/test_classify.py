"""The class of a request that names none, why it is this one, and its shape: DESIGN §2."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy import ClassReason, LatencyClass, classify, log2_bucket
from services.router.policy.classify import UNKNOWN_OUTPUT, OutputHistory

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
    verdict = classify(None, streaming=streaming, deadline_s=deadline_s, most_urgent=I)
    assert verdict == (expected, ClassReason.INFERRED)


@settings(deadline=None)
@given(asked=CLASSES, cap=CLASSES, streaming=st.booleans())
def test_a_named_class_holds_as_far_as_the_tenant_may(
    asked: LatencyClass, cap: LatencyClass, streaming: bool
) -> None:
    verdict = classify(asked, streaming=streaming, deadline_s=None, most_urgent=cap)
    assert verdict.latency_class is max(asked, cap)
    assert verdict.reason is (ClassReason.CAPPED if asked < cap else ClassReason.ASKED)


def test_what_is_beyond_a_budget_is_standard_and_says_so() -> None:
    verdict = classify(None, streaming=True, deadline_s=None, most_urgent=I).over_budget()
    assert verdict == (S, ClassReason.OVER_BUDGET)


class Caller(NamedTuple):
    """A kind of client: what its requests are for, how they look, and how many come in its place."""

    label: LatencyClass
    share: float
    streams: float
    """Of its requests, streamed."""
    deadlines_s: tuple[float, float] | None
    sets_deadline: float
    """Of its requests, with one."""
    at_once: tuple[int, int] = (1, 1)


CALLERS = (
    Caller(I, 0.42, 1.0, (30.0, 300.0), 0.5),  # chat: streams, with the client library's time-out
    Caller(I, 0.08, 0.0, (2.0, 12.0), 1.0),  # completion in an editor: unary, and useless when late
    Caller(I, 0.05, 0.97, (20.0, 60.0), 0.7),  # voice agents; a few take the whole answer
    Caller(S, 0.20, 0.0, (30.0, 120.0), 0.8, (1, 4)),  # a service behind another: unary, a minute
    Caller(S, 0.06, 0.0, (60.0, 300.0), 0.6, (1, 16)),  # extraction for a page that somebody waits for
    Caller(B, 0.16, 0.0, (3600.0, 86_400.0), 0.97, (50, 400)),  # jobs at night
    Caller(B, 0.03, 0.02, (900.0, 7200.0), 1.0, (20, 200)),  # evaluations; a few stream, to watch
)


class Labelled(NamedTuple):
    """A request that names no class, and what it really is."""

    label: LatencyClass
    streaming: bool
    deadline_s: float | None


def labelled_traffic(seed: int, requests: int) -> Iterator[Labelled]:
    """Mixed traffic; each caller has its share of all requests, however many it sends at once."""
    rng = random.Random(seed)
    made = 0
    while made < requests:
        rates = [each.share / (sum(each.at_once) / 2) for each in CALLERS]
        caller = rng.choices(CALLERS, rates)[0]
        for _ in range(rng.randint(*caller.at_once)):
            made += 1
            yield _request(caller, rng)


def _request(caller: Caller, rng: random.Random) -> Labelled:
    deadline_s = None
    if caller.deadlines_s is not None and rng.random() < caller.sets_deadline:
        low, high = caller.deadlines_s
        deadline_s = low * (high / low) ** rng.random()
    return Labelled(caller.label, rng.random() < caller.streams, deadline_s)


@pytest.mark.parametrize("seed", range(5))
def test_of_labelled_mixed_traffic_95_in_100_are_inferred_right(seed: int) -> None:
    right, total = dict.fromkeys(LatencyClass, 0), dict.fromkeys(LatencyClass, 0)
    for each in labelled_traffic(seed, 20_000):
        verdict = classify(None, streaming=each.streaming, deadline_s=each.deadline_s, most_urgent=I)
        right[each.label] += verdict.latency_class is each.label
        total[each.label] += 1
    assert sum(right.values()) >= 0.95 * sum(total.values())
    assert all(right[each] >= 0.9 * total[each] for each in LatencyClass), "no class at the others' expense"


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
    assert not history.knows("a", "m", S)
    for _ in range(100):
        history.record("a", "m", S, 20)
    assert history.expect("a", "m", S, 200) == 20
    assert history.expect("a", "m", S, 5) == 5
    assert history.knows("a", "m", S)


def test_nothing_is_expected_from_another_tenants_answers() -> None:
    history = OutputHistory()
    history.record("a", "m", S, 20)
    assert history.expect("b", "m", S, 10_000) == UNKNOWN_OUTPUT
    assert not history.knows("b", "m", S)
