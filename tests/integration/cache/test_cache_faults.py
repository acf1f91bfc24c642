"""What callers see when Valkey is slow, gone, full, locked or lying: misses in bounded time, and a metric."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.v1 import cache_pb2 as pb

from tests.support.cache_service import RunningCache, running_cache
from tests.support.valkey import TestValkey, running_valkey
from tests.support.waiting import eventually, eventually_async

TAG = b"t" * 16
BUDGET_MS = 100.0
BOUND_S = 5.0  # far below any time-out of a client library, far above what two busy cores add to the budget


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


async def store(cache: RunningCache, name: str, value: bytes = b"sealed") -> int:
    entry = pb.StoreEntry(key=key(name), value=value, tenant_tag=TAG)
    request = pb.StoreRequest(kind=pb.CACHE_KIND_RESPONSE, entries=[entry])
    return (await cache.call("Store", request)).accepted


async def lookup(cache: RunningCache, name: str) -> bytes | None:
    reply = await cache.call("Lookup", pb.LookupRequest(kind=pb.CACHE_KIND_RESPONSE, keys=[key(name)]))
    return reply.results[0].value if reply.results[0].HasField("value") else None


async def until_stored(cache: RunningCache, name: str) -> None:
    """Stores until a look-up finds it."""

    async def found() -> bool:
        await store(cache, name)
        return await lookup(cache, name) is not None

    await eventually_async(found, f"{name} is stored", 60)


async def bounded_miss(cache: RunningCache, name: str) -> None:
    started = time.monotonic()
    assert await lookup(cache, name) is None
    assert time.monotonic() - started < BOUND_S


async def is_serving(cache: RunningCache) -> bool:
    stub = health_pb2_grpc.HealthStub(cache.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service="headrace.v1.CacheService"))
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def refused(cache: RunningCache) -> float:
    return cache.value("headrace_cache_dropped_total", reason="refused")


async def test_a_frozen_valkey_costs_the_budget_then_nothing(tmp_path: Path, valkey: TestValkey) -> None:
    async with running_cache(
        tmp_path, valkey_url=valkey.url, l1_bytes=0, lookup_budget_ms=BUDGET_MS, call_timeout_ms=60_000.0
    ) as cache:
        await cache.until_valkey_is(True)
        await until_stored(cache, "a")
        valkey.freeze()
        for _ in range(40):
            await bounded_miss(cache, "a")
            if not cache.value("headrace_cache_valkey_up"):
                break
        assert cache.value("headrace_cache_valkey_up") == 0  # by the share of failures: no call timed out yet
        abandoned = cache.value("headrace_cache_abandoned_total")
        assert abandoned >= 1
        for _ in range(10):
            await bounded_miss(cache, "a")
        assert cache.value("headrace_cache_abandoned_total") == abandoned
        assert await store(cache, "b") == 0
        assert await is_serving(cache)
        valkey.thaw()
        await cache.until_valkey_is(True)
        await until_stored(cache, "a")


async def test_memory_still_hits_while_valkey_is_frozen(tmp_path: Path, valkey: TestValkey) -> None:
    async with running_cache(tmp_path, valkey_url=valkey.url) as cache:
        await cache.until_valkey_is(True)
        valkey.freeze()
        await store(cache, "a", b"kept")
        assert await lookup(cache, "a") == b"kept"


async def test_a_killed_valkey_is_away_at_once_and_used_again_when_back(
    cache: RunningCache, valkey: TestValkey
) -> None:
    await until_stored(cache, "a")
    valkey.kill()
    await bounded_miss(cache, "a")
    await cache.until_valkey_is(False)
    assert await store(cache, "b") == 0
    assert await is_serving(cache)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.call("Forget", pb.ForgetRequest(tenant_tag=TAG))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    valkey.restart()
    await cache.until_valkey_is(True)
    await bounded_miss(cache, "a")  # it came back empty
    await until_stored(cache, "a")  # and has our functions again


async def test_a_full_valkey_refuses_writes_and_still_answers(tmp_path: Path) -> None:
    with running_valkey(**{"maxmemory-policy": "noeviction"}) as valkey:
        async with running_cache(
            tmp_path, valkey_url=valkey.url, l1_bytes=0, lookup_budget_ms=1000.0
        ) as cache:
            await cache.until_valkey_is(True)
            await until_stored(cache, "a")
            valkey.admin.config_set("maxmemory", "1")
            for number in range(30):
                await store(cache, f"n{number}")
            await eventually(lambda: refused(cache) >= 30, "refusals counted")
            assert await lookup(cache, "a") == b"sealed"
            assert cache.value("headrace_cache_valkey_up") == 1


async def test_a_wrong_password_is_away_not_an_error(tmp_path: Path, valkey: TestValkey) -> None:
    valkey.admin.config_set("requirepass", "right")
    password = tmp_path / "password"
    password.write_text("wrong\n")
    async with running_cache(
        tmp_path, valkey_url=valkey.url, valkey_password_file=password, l1_bytes=0
    ) as cache:
        await bounded_miss(cache, "a")
        assert await store(cache, "a") == 0
        assert await is_serving(cache)
        assert cache.value("headrace_cache_valkey_up") == 0
    password.write_text("right\n")
    async with running_cache(
        tmp_path, valkey_url=valkey.url, valkey_password_file=password, l1_bytes=0
    ) as cache:
        await cache.until_valkey_is(True)
        await until_stored(cache, "a")


async def test_a_valkey_that_was_never_there_is_away(tmp_path: Path) -> None:
    async with running_cache(tmp_path, valkey_url=f"unix://{tmp_path}/none") as cache:
        await bounded_miss(cache, "a")
        assert await store(cache, "a") == 0
        assert await lookup(cache, "a") == b"sealed"  # memory
        assert await is_serving(cache)


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "type"])
async def test_a_lying_valkey_is_a_miss(cache: RunningCache, valkey: TestValkey, damage: str) -> None:
    assert [await store(cache, name) for name in ("a", "b")] == [1, 1]
    await eventually(lambda: cache.value("headrace_cache_written_total") == 2, "nothing more is on its way")
    name, admin = b"hr:c:1:" + key("a"), valkey.admin
    stored = admin.get(name)
    if damage == "flip":
        admin.set(name, stored[:-1] + bytes([stored[-1] ^ 1]))
    elif damage == "cut":
        admin.set(name, stored[: len(stored) // 2])
    elif damage == "swap":
        admin.set(name, admin.get(b"hr:c:1:" + key("b")))
    else:
        admin.delete(name)
        admin.lpush(name, b"a list")
    await bounded_miss(cache, "a")
    assert cache.value("headrace_cache_damaged_total") == (0 if damage == "type" else 1)
    assert await lookup(cache, "b") == b"sealed"


async def test_functions_that_were_flushed_come_back(cache: RunningCache, valkey: TestValkey) -> None:
    valkey.admin.function_flush("SYNC")
    await store(cache, "a")
    await cache.until_valkey_is(False)
    await cache.until_valkey_is(True)
    await until_stored(cache, "a")


async def test_the_write_queue_drops_the_oldest(tmp_path: Path, valkey: TestValkey) -> None:
    async with running_cache(
        tmp_path,
        valkey_url=valkey.url,
        l1_bytes=0,
        write_queue_entries=5,
        call_timeout_ms=60_000.0,
        lookup_budget_ms=1000.0,
    ) as cache:
        await cache.until_valkey_is(True)
        valkey.freeze()
        await store(cache, "in flight")
        await eventually(lambda: cache.value("headrace_cache_queued") == 0, "first batch on its way")
        for number in range(12):
            assert await store(cache, f"n{number}") == 1
        assert cache.value("headrace_cache_dropped_total", reason="queue_full") == 7
        valkey.thaw()
        await eventually(lambda: cache.value("headrace_cache_written_total") == 6, "the rest is written")
        assert [await lookup(cache, f"n{i}") is not None for i in range(12)] == [False] * 7 + [True] * 5
