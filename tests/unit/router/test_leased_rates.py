"""Quotas that routers keep together: nobody exceeds them, nobody waits for the server, lies do little."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy.rates import Claim, Lease, LeasedLevel, LeasedRate

ANSWER_S = 0.02


class Bucket:
    """What the server keeps: an exact bucket."""

    def __init__(self, units_per_s: float, burst: float) -> None:
        self.units_per_s, self.burst = units_per_s, burst
        self._level, self._at = burst, 0.0

    def lease(self, now: float, claim: Claim) -> Lease:
        self._level = min(self.burst, self._level + (now - self._at) * self.units_per_s + claim.returned)
        self._at = now
        granted = min(claim.wanted, self._level)
        self._level -= granted
        missing = min(claim.wanted - granted, self.burst) - self._level
        retry_s = max(0.001, missing / self.units_per_s) if granted < claim.wanted else 0.0
        return Lease(granted, 2.0 if granted else 0.0, retry_s)


def serve(routers: list[LeasedRate], bucket: Bucket | None, now: float) -> None:
    for router in routers:
        if router.due(now):
            claim = router.claim(now)
            if bucket is None:
                router.unanswered(now)
            else:
                router.settle(now, claim, bucket.lease(now, claim))


def flood(routers: list[LeasedRate], bucket: Bucket | None, start: float, end: float) -> int:
    """Every router tries to let a request in every few milliseconds; returns how many came in."""
    passed, now = 0, start
    while now < end:
        for router in routers:
            if router.wait(now) == 0:
                router.take(now, 1)
                passed += 1
        serve(routers, bucket, now)
        now += ANSWER_S
    return passed


@pytest.mark.parametrize("count", [1, 2, 4])
def test_flooded_routers_let_in_what_one_bucket_would(count: int) -> None:
    bucket, routers = Bucket(10.0, 60.0), [LeasedRate(10.0, 60.0, count) for _ in range(count)]
    passed = flood(routers, bucket, 0.0, 30.0)
    assert 0.97 * (60 + 300) <= passed <= 1.03 * (60 + 300)


def test_one_busy_router_of_many_gets_the_whole_quota() -> None:
    bucket, routers = Bucket(10.0, 60.0), [LeasedRate(10.0, 60.0, 4) for _ in range(4)]
    passed = flood(routers[:1], bucket, 0.0, 30.0)
    assert 0.95 * (60 + 300) <= passed <= 60 + 300 + 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_without_answers_each_router_goes_on_with_its_share(count: int) -> None:
    routers = [LeasedRate(10.0, 60.0, count) for _ in range(count)]
    assert 0.95 * 360 <= flood(routers, None, 0.0, 30.0) <= 360 + count
    assert 0.9 * 360 / count <= flood([LeasedRate(10.0, 60.0, count)], None, 0.0, 30.0) <= 360 / count + 1


def test_an_outage_between_answers_costs_at_most_a_burst() -> None:
    bucket, routers = Bucket(10.0, 60.0), [LeasedRate(10.0, 60.0, 2) for _ in range(2)]
    passed = flood(routers, bucket, 0.0, 10.0)
    passed += flood(routers, None, 10.0, 20.0)
    passed += flood(routers, bucket, 20.0, 30.0)
    assert 0.9 * 360 <= passed <= 360 + 60 + 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 3), st.floats(0.1, 40), st.booleans()),
        min_size=1,
        max_size=120,
    ),
    st.floats(0.1, 50),
    st.floats(1, 200),
)
def test_what_passes_is_bounded_whoever_asks_and_whatever_is_lost(
    turns: list[tuple[int, float, float, bool]], rate: float, burst: float
) -> None:
    bucket, routers = Bucket(rate, burst), [LeasedRate(rate, burst, 3) for _ in range(3)]
    now, let_in, largest = 0.0, 0.0, 0.0
    for index, gap, units, answered in turns:
        now += gap
        router = routers[index]
        if router.wait(now) == 0:
            router.take(now, units)
            let_in, largest = let_in + units, max(largest, units)
        serve([router], bucket if answered else None, now)
    assert let_in <= 3 * (burst + largest) + rate * now + 1e-6


def test_idle_routers_give_back_what_they_leased() -> None:
    bucket, one = Bucket(0.001, 100.0), LeasedRate(0.001, 100.0, 2)
    one.take(0.0, 1)
    serve([one], bucket, 0.0)
    serve([one], bucket, 1.5)
    assert bucket.lease(1.5, Claim(100.0)).granted == pytest.approx(99, abs=0.1)


@pytest.mark.parametrize(
    "lie",
    [
        Lease(math.nan, 2.0, 0.0),
        Lease(1e9, 2.0, 0.0),
        Lease(-5.0, 2.0, 0.0),
        Lease(0.0, 0.0, 1e9),
        Lease(0.0, math.inf, 1.0),
    ],
)
def test_a_lie_leaves_the_router_with_its_share(lie: Lease) -> None:
    router, passed, now = LeasedRate(10.0, 60.0, 2), 0, 0.0
    while now < 30.0:
        if router.wait(now) == 0:
            router.take(now, 1)
            passed += 1
        if router.due(now):
            router.settle(now, router.claim(now), lie)
        now += ANSWER_S
    assert 0.9 * 180 <= passed <= 181


def test_a_server_that_grants_everything_cannot_lift_the_quota() -> None:
    router, passed, now = LeasedRate(10.0, 60.0, 2), 0, 0.0
    while now < 30.0:
        if router.wait(now) == 0:
            router.take(now, 1)
            passed += 1
        if router.due(now):
            claim = router.claim(now)
            router.settle(now, claim, Lease(claim.wanted, 2.0, 0.0))
        now += ANSWER_S
    assert passed <= 361


def test_a_level_is_the_share_until_an_answer_and_the_grant_after_it() -> None:
    level = LeasedLevel(4, routers=2)
    for _ in range(2):
        assert level.allows(0.0)
        level.hold(0.0, 1)
    assert not level.allows(0.0)
    assert level.due(0.0)
    claim = level.claim(0.0)
    assert (claim.wanted, claim.used) == (4, 2)
    level.settle(0.0, claim, Lease(4.0, 2.0, 0.0))
    assert level.allows(0.1)
    level.hold(0.1, 2)
    assert not level.allows(0.1)
    level.hold(0.1, -3)
    assert level.allows(0.1)
    assert not level.allows(5.0, 2.0), "a grant that was not renewed is void"


def test_a_router_that_holds_nothing_asks_for_who_waits_however_long() -> None:
    level, now = LeasedLevel(4, routers=2), 0.0
    level.hold(now, 1)
    level.hold(now, -1)
    for _ in range(5):  # the others hold all of it
        now += 1.5
        assert level.allows(now) == (now == 1.5), "its share, until it is told that nothing is left"
        claim = level.claim(now)
        level.settle(now, claim, Lease(0.0, 2.0, 0.0))
    assert not level.allows(now)
    claim = level.claim(now)
    assert (claim.wanted, claim.used) == (4, 0)
    level.settle(now, claim, Lease(4.0, 2.0, 0.0))
    assert level.allows(now), "they hold nothing any more"


def test_of_a_level_one_request_may_be_larger_than_all() -> None:
    level = LeasedLevel(100.0, routers=2, unit=0.0)
    assert level.allows(0.0, 1000.0)
    level.hold(0.0, 1000.0)
    assert not level.allows(0.0, 1.0)
