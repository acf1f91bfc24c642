"""The cache service over gRPC, with a real Valkey that behaves."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from headrace.v1 import cache_pb2 as pb

from services.cache.checks import CHUNK_BYTES
from tests.support.cache_service import RunningCache, running_cache
from tests.support.valkey import TestValkey
from tests.support.waiting import eventually, eventually_async

TAG, OTHER = b"t" * 16, b"o" * 16


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def entry(name: str, value: bytes = b"sealed", tag: bytes = TAG, **more: int) -> pb.StoreEntry:
    return pb.StoreEntry(key=key(name), value=value, tenant_tag=tag, **more)


async def store(cache: RunningCache, *entries: pb.StoreEntry) -> int:
    request = pb.StoreRequest(kind=pb.CACHE_KIND_RESPONSE, entries=entries)
    return (await cache.call("Store", request)).accepted


async def written(cache: RunningCache, count: int) -> None:
    await eventually(lambda: cache.value("headrace_cache_written_total") >= count, f"{count} written")


async def lookup(cache: RunningCache, *names: str, kind: int = pb.CACHE_KIND_RESPONSE) -> list[bytes | None]:
    reply = await cache.call("Lookup", pb.LookupRequest(kind=kind, keys=[key(name) for name in names]))
    return [each.value if each.HasField("value") else None for each in reply.results]


async def test_hits_and_misses_come_in_the_order_of_the_keys(cache: RunningCache) -> None:
    assert await store(cache, entry("a", b"1"), entry("b", b""), entry("c", b"3")) == 3
    await written(cache, 3)
    assert await lookup(cache, "c", "nothing", "b", "a") == [b"3", None, b"", b"1"]
    assert await lookup(cache, "a", kind=pb.CACHE_KIND_ENCODING) == [None]


async def test_the_newest_value_of_a_key_wins(cache: RunningCache) -> None:
    for value in (b"1", b"2", b"3"):
        await store(cache, entry("a", value))
    await eventually(lambda: cache.value("headrace_cache_queued") == 0, "queue empty")
    await store(cache, entry("b"))
    await written(cache, 2)
    await eventually_value(cache, "b", b"sealed")
    assert await lookup(cache, "a") == [b"3"]


async def eventually_value(cache: RunningCache, name: str, value: bytes | None) -> None:
    async def is_so() -> bool:
        return await lookup(cache, name) == [value]

    await eventually_async(is_so, f"{name} is {value!r}")


async def test_an_entry_ends_with_its_time(cache: RunningCache, valkey: TestValkey) -> None:
    await store(cache, entry("short", ttl_s=1), entry("long", ttl_s=1000), entry("default"))
    await written(cache, 3)
    await eventually_value(cache, "short", None)
    assert await lookup(cache, "long", "default") == [b"sealed", b"sealed"]
    lives = {valkey.admin.ttl(name) for name in valkey.admin.keys("hr:c:*")}
    assert max(lives) in range(86_300, 86_401)


async def test_a_second_service_reads_what_the_first_wrote(
    cache: RunningCache, valkey: TestValkey, tmp_path: Path
) -> None:
    await store(cache, entry("a", b"shared"))
    await written(cache, 1)
    async with running_cache(tmp_path, valkey_url=valkey.url) as second:
        await second.until_valkey_is(True)
        assert await lookup(second, "a") == [b"shared"]
        assert await lookup(second, "a") == [b"shared"]
        outcomes = {
            word: second.value("headrace_cache_lookups_total", kind="response", outcome=word)
            for word in ("memory", "valkey", "miss")
        }
        assert outcomes == {"memory": 1, "valkey": 1, "miss": 0}


async def test_nothing_that_was_sent_lies_readable_under_a_plain_name(
    cache: RunningCache, valkey: TestValkey
) -> None:
    """The service adds only its own prefixes: what it stores is what routers sealed."""
    await store(cache, entry("a", b"ciphertext"))
    await written(cache, 1)
    assert sorted(valkey.admin.keys("*")) == sorted([b"hr:c:1:" + key("a"), b"hr:t:" + TAG])


async def test_forget_removes_all_of_one_tenant_in_every_tier(
    cache: RunningCache, valkey: TestValkey
) -> None:
    entries = [entry(f"mine{i}") for i in range(200)]
    await store(cache, *entries, entry("theirs", tag=OTHER))
    await written(cache, 201)
    await store(cache, entry("still queued"))
    assert (await cache.call("Forget", pb.ForgetRequest(tenant_tag=TAG))).removed == 201
    assert await lookup(cache, "mine0", "mine199", "still queued", "theirs") == [None, None, None, b"sealed"]
    assert valkey.admin.keys("hr:t:*") == [b"hr:t:" + OTHER]
    assert (await cache.call("Forget", pb.ForgetRequest(tenant_tag=TAG))).removed == 0


async def test_what_falls_out_of_a_tenants_index_is_deleted(valkey: TestValkey, tmp_path: Path) -> None:
    async with running_cache(tmp_path, valkey_url=valkey.url, l1_bytes=0, tenant_entries=10) as cache:
        await cache.until_valkey_is(True)
        await store(cache, *[entry(f"e{i}", ttl_s=1000 + i) for i in range(30)])
        await written(cache, 30)
        assert len(valkey.admin.keys("hr:c:*")) == valkey.admin.zcard(b"hr:t:" + TAG) == 10
        assert await lookup(cache, "e0", "e29") == [None, b"sealed"]


async def test_without_valkey_memory_serves(memory_cache: RunningCache) -> None:
    assert await store(memory_cache, entry("a", b"1"), entry("b", b"2", OTHER)) == 2
    assert await lookup(memory_cache, "a", "b", "c") == [b"1", b"2", None]
    assert (await memory_cache.call("Forget", pb.ForgetRequest(tenant_tag=TAG))).removed == 1
    assert await lookup(memory_cache, "a", "b") == [None, b"2"]


async def test_a_look_up_never_answers_more_than_a_message_holds(memory_cache: RunningCache) -> None:
    names = [f"n{i}" for i in range(100)]
    for name in names:
        await store(memory_cache, entry(name, bytes(256 << 10)))
    values = await lookup(memory_cache, *names)
    held = [value for value in values if value is not None]
    assert len(held) == 64
    assert all(len(value) == 256 << 10 for value in held)


async def test_strangers_are_refused_and_counted(cache: RunningCache) -> None:
    for metadata in ((), (("headrace-member", "0" * 64),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cache.stub.Forget(pb.ForgetRequest(tenant_tag=TAG), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert cache.value("headrace_strangers_total", method="CacheService.Forget") == 2


async def test_a_wrong_request_names_its_field(cache: RunningCache) -> None:
    bad = pb.LookupRequest(kind=pb.CACHE_KIND_RESPONSE, keys=[key("a"), b"short"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.call("Lookup", bad)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    packed = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    found = error_details_pb2.BadRequest()
    assert any(each.Unpack(found) for each in status_pb2.Status.FromString(packed).details)
    assert [each.field for each in found.field_violations] == ["keys[1]"]


async def save(cache: RunningCache, name: str, pieces: list[bytes], **first: int) -> int:
    async def requests() -> AsyncIterator[pb.SaveSnapshotRequest]:
        for number, piece in enumerate(pieces):
            more = {"name": name, **first} if number == 0 else {}
            yield pb.SaveSnapshotRequest(chunk=piece, **more)

    return (await cache.stub.SaveSnapshot(requests(), metadata=cache.member, timeout=20)).stored_bytes


async def load(cache: RunningCache, name: str) -> list[bytes]:
    call = cache.stub.LoadSnapshot(pb.LoadSnapshotRequest(name=name), metadata=cache.member, timeout=20)
    return [each.chunk async for each in call]


async def test_a_snapshot_comes_back_whole_and_in_order(cache: RunningCache, valkey: TestValkey) -> None:
    pieces = [bytes([i]) * CHUNK_BYTES for i in range(40)] + [b"tail"]
    assert await save(cache, "index", pieces) == 40 * CHUNK_BYTES + 4
    assert b"".join(await load(cache, "index")) == b"".join(pieces)
    assert await save(cache, "index", [b"newer"], ttl_s=77) == 5
    assert await load(cache, "index") == [b"newer"]
    assert len(valkey.admin.keys("hr:p:*")) == 1
    assert valkey.admin.ttl(b"hr:s:index") in range(1, 78)
    assert await load(cache, "other") == []


async def test_a_snapshot_that_is_too_large_leaves_nothing(valkey: TestValkey, tmp_path: Path) -> None:
    async with running_cache(tmp_path, valkey_url=valkey.url, snapshot_bytes=100_000) as cache:
        await cache.until_valkey_is(True)
        await save(cache, "index", [b"good"])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await save(cache, "index", [bytes(CHUNK_BYTES)] * 2)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: len(valkey.admin.keys("hr:p:*")) == 1, "pieces removed")
        assert await load(cache, "index") == [b"good"]


async def test_a_snapshot_that_lost_a_piece_is_a_miss(cache: RunningCache, valkey: TestValkey) -> None:
    await save(cache, "index", [b"1", b"2", b"3"])
    valkey.admin.lpop(valkey.admin.keys("hr:p:*")[0])
    assert await load(cache, "index") == []


async def test_without_valkey_snapshots_are_not_kept(memory_cache: RunningCache) -> None:
    assert await save(memory_cache, "index", [b"1", b"2"]) == 0
    assert await load(memory_cache, "index") == []
