"""The RPCs of the cache service: check, do, answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from headrace.v1 import cache_pb2

from services.cache import checks
from services.cache.frames import Entry
from services.cache.functions import entry_name
from services.cache.quotas import Quotas
from services.cache.snapshots import Snapshots
from services.cache.store import Store
from services.cache.valkey import Away
from services.common.errors import FieldViolation, InvalidArgument
from services.common.rpc import Context

DEFAULT_TTL_S = 86400
DEFAULT_SNAPSHOT_TTL_S = 600
REPLY_BYTES = 16 << 20  # of one look-up; what is beyond counts as missed


class CacheServicer:
    """Serves `headrace.v1.CacheService`. Without `quotas` and `snapshots` there is no Valkey."""

    def __init__(
        self, store: Store, quotas: Quotas | None, snapshots: Snapshots | None, snapshot_bytes: int
    ) -> None:
        self._store = store
        self._quotas = quotas
        self._snapshots = snapshots
        self._snapshot_bytes = snapshot_bytes

    async def Lookup(self, request: cache_pb2.LookupRequest, _: Context) -> cache_pb2.LookupResponse:
        """Hits in memory, then in Valkey within the budget; everything else is a miss."""
        checks.lookup(request)
        names = [entry_name(request.kind, key) for key in request.keys]
        values = await self._store.lookup(checks.KINDS[request.kind], names)
        return cache_pb2.LookupResponse(results=list(_results(values)))

    async def Store(self, request: cache_pb2.StoreRequest, _: Context) -> cache_pb2.StoreResponse:
        """Keeps the entries in memory and queues them."""
        checks.store(request)
        now = time.time()
        entries = {
            entry_name(request.kind, each.key): Entry(each.value, each.tenant_tag, now + _ttl_s(each))
            for each in request.entries
        }
        return cache_pb2.StoreResponse(accepted=self._store.store(entries))

    async def Forget(self, request: cache_pb2.ForgetRequest, _: Context) -> cache_pb2.ForgetResponse:
        """Removes a tenant's entries; UNAVAILABLE when Valkey has some that cannot be reached."""
        checks.tag(request.tenant_tag)
        return cache_pb2.ForgetResponse(removed=await self._store.forget(request.tenant_tag))

    async def LeaseQuota(
        self, request: cache_pb2.LeaseQuotaRequest, _: Context
    ) -> cache_pb2.LeaseQuotaResponse:
        """Grants shares; UNAVAILABLE when Valkey is away: the router goes on with what it has."""
        checks.claims(request)
        if self._quotas is None:
            raise Away
        return cache_pb2.LeaseQuotaResponse(
            leases=await self._quotas.lease(request.router_id, request.claims)
        )

    async def SaveSnapshot(
        self, requests: AsyncIterator[cache_pb2.SaveSnapshotRequest], _: Context
    ) -> cache_pb2.SaveSnapshotResponse:
        """Keeps a snapshot whole or not at all."""
        first = await anext(aiter(requests), None)
        if first is None:
            raise InvalidArgument(FieldViolation("name", "no piece was sent"))
        checks.snapshot_name(first.name)
        ttl_s = first.ttl_s if first.HasField("ttl_s") else DEFAULT_SNAPSHOT_TTL_S
        checks.snapshot_ttl(ttl_s)
        chunks = self._chunks(first, requests)
        if self._snapshots is None:
            return await _swallow(chunks)
        try:
            stored = await self._snapshots.save(first.name, ttl_s, chunks)
        except Away:
            return await _swallow(chunks)
        return cache_pb2.SaveSnapshotResponse(stored_bytes=stored)

    async def LoadSnapshot(
        self, request: cache_pb2.LoadSnapshotRequest, _: Context
    ) -> AsyncIterator[cache_pb2.LoadSnapshotResponse]:
        """The newest snapshot of a name; an empty stream is a miss."""
        checks.snapshot_name(request.name)
        if self._snapshots is not None:
            async for chunk in self._snapshots.load(request.name):
                yield cache_pb2.LoadSnapshotResponse(chunk=chunk)

    async def _chunks(
        self, first: cache_pb2.SaveSnapshotRequest, rest: AsyncIterator[cache_pb2.SaveSnapshotRequest]
    ) -> AsyncIterator[bytes]:
        checks.snapshot_piece(first, 0, self._snapshot_bytes)
        total = len(first.chunk)
        yield first.chunk
        async for piece in rest:
            checks.snapshot_piece(piece, total, self._snapshot_bytes)
            total += len(piece.chunk)
            yield piece.chunk


def _results(values: list[bytes | None]) -> list[cache_pb2.LookupResult]:
    results, left = [], REPLY_BYTES
    for value in values:
        fits = value is not None and len(value) <= left
        left -= len(value) if value is not None and fits else 0
        results.append(cache_pb2.LookupResult(value=value) if fits else cache_pb2.LookupResult())
    return results


def _ttl_s(entry: cache_pb2.StoreEntry) -> int:
    return entry.ttl_s if entry.HasField("ttl_s") else DEFAULT_TTL_S


async def _swallow(chunks: AsyncIterator[bytes]) -> cache_pb2.SaveSnapshotResponse:
    """Reads the caller's stream to its end, so that it hears an answer instead of a reset."""
    async for _ in chunks:
        pass
    return cache_pb2.SaveSnapshotResponse(stored_bytes=0)
