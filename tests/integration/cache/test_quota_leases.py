"""Quota leases: units are conserved whatever claimants do, and nobody waits for a Valkey that is away."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from headrace.v1 import cache_pb2 as pb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.cache_service import RunningCache, running_cache
from tests.support.valkey import TestValkey
from tests.support.waiting import eventually


def claim(tag: bytes, wanted: float, **changes: Any) -> pb.QuotaClaim:
    good = {"quota": "tokens", "units_per_minute": 600, "burst_units": 100, "wanted_units": wanted}
    return pb.QuotaClaim(tenant_tag=tag, **{**good, **changes})


async def lease(cache: RunningCache, router: str, *claims: pb.QuotaClaim) -> list[pb.QuotaLease]:
    request = pb.LeaseQuotaRequest(router_id=router, claims=claims)
    return list((await cache.call("LeaseQuota", request)).leases)


async def test_a_burst_is_granted_then_the_rate(cache: RunningCache) -> None:
    tag = secrets.token_bytes(16)
    whole, part = await lease(cache, "a", claim(tag, 60), claim(tag, 60))
    assert (whole.granted_units, whole.retry_ms) == (60, 0)
    assert whole.valid_ms == 2000
    assert 40 <= part.granted_units < 41
    # 20 units are missing at 10 a second
    assert 1800 < part.retry_ms <= 2000
    (none,) = await lease(cache, "b", claim(tag, 1000))
    assert none.granted_units < 60
    assert none.retry_ms > 0


async def test_unspent_units_come_back_but_never_more_than_were_leased(
    tmp_path: Path, valkey: TestValkey
) -> None:
    async with running_cache(tmp_path, valkey_url=valkey.url, lease_ms=60_000) as cache:
        await cache.until_valkey_is(True)
        tag = secrets.token_bytes(16)
        slow = {"units_per_minute": 0.001}
        await lease(cache, "a", claim(tag, 70, **slow))
        (other,) = await lease(cache, "b", claim(tag, 100, **slow))
        assert other.granted_units == pytest.approx(30, abs=0.01)
        (again,) = await lease(cache, "a", claim(tag, 100, returned_units=50, **slow))
        assert again.granted_units == pytest.approx(50, abs=0.01)
        (liar,) = await lease(cache, "liar", claim(tag, 100, returned_units=1e9, **slow))
        assert liar.granted_units == pytest.approx(0, abs=0.01)


async def test_a_void_lease_gives_nothing_back(tmp_path: Path, valkey: TestValkey) -> None:
    async with running_cache(tmp_path, valkey_url=valkey.url, lease_ms=1) as cache:
        await cache.until_valkey_is(True)
        tag = secrets.token_bytes(16)
        slow = {"units_per_minute": 0.001}
        await lease(cache, "a", claim(tag, 100, **slow))
        await eventually(lambda: not valkey.admin.keys("hr:l:*"), "the lease is void")
        (after,) = await lease(cache, "a", claim(tag, 100, returned_units=100, **slow))
        assert after.granted_units == pytest.approx(0, abs=0.01)


async def test_tenants_and_quotas_do_not_touch_each_other(cache: RunningCache) -> None:
    one, two = secrets.token_bytes(16), secrets.token_bytes(16)
    leases = await lease(
        cache, "a", claim(one, 100), claim(two, 100), claim(one, 100, quota="requests"), claim(one, 1)
    )
    assert [round(each.granted_units) for each in leases] == [100, 100, 100, 0]


class Claimant:
    """A router that leases, spends some and gives the rest back."""

    def __init__(self, cache: RunningCache, tag: bytes, name: str, rate: float, burst: float) -> None:
        self._cache, self._tag, self._name = cache, tag, name
        self._rate, self._burst = rate, burst
        self.spent = 0.0

    async def run(self, turns: list[tuple[float, float]]) -> None:
        left = 0.0
        for wanted, share in turns:
            asked = claim(
                self._tag,
                wanted,
                units_per_minute=self._rate,
                burst_units=self._burst,
                returned_units=left,
            )
            (granted,) = await lease(self._cache, self._name, asked)
            assert granted.granted_units <= wanted
            assert (granted.retry_ms == 0) == (granted.granted_units == pytest.approx(wanted))
            self.spent += granted.granted_units * share
            left = granted.granted_units * (1 - share)


turns = st.lists(st.tuples(st.floats(0, 500), st.floats(0, 1)), min_size=1, max_size=12)


async def test_two_concurrent_claimants_never_spend_more_than_the_quota(
    tmp_path: Path, shared_valkey: TestValkey
) -> None:
    async with running_cache(tmp_path, valkey_url=shared_valkey.url) as cache:
        await cache.until_valkey_is(True)
        loop = asyncio.get_running_loop()

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(turns, turns, st.floats(1, 6000), st.floats(1, 300))
        def conserved(
            first: list[tuple[float, float]], second: list[tuple[float, float]], rate: float, burst: float
        ) -> None:
            asyncio.run_coroutine_threadsafe(race(first, second, rate, burst), loop).result(60)

        async def race(
            first: list[tuple[float, float]], second: list[tuple[float, float]], rate: float, burst: float
        ) -> None:
            tag = secrets.token_bytes(16)
            one, two = (Claimant(cache, tag, name, rate, burst) for name in ("one", "two"))
            started = time.time()
            await asyncio.gather(one.run(first), two.run(second))
            seconds = time.time() - started + 0.002  # the server's clock has microseconds
            assert one.spent + two.spent <= burst + rate / 60 * seconds + 1e-6

        await asyncio.to_thread(conserved)


async def test_leases_need_valkey_and_say_when_to_ask_again(
    cache: RunningCache, memory_cache: RunningCache, valkey: TestValkey
) -> None:
    valkey.kill()
    for each in (memory_cache, cache):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await lease(each, "a", claim(b"t" * 16, 1))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
