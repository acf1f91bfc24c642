"""The cache service as the router uses it: a look-up costs at most a few milliseconds, a store nothing.

Slow, full, dead or lying, it changes hit rates, never answers: every failure is a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from headrace.v1 import cache_pb2, cache_pb2_grpc

from services.common import logs, transport
from services.common.members import MeshSecret
from services.common.scope import ScopeKeys
from services.common.transport import Tls
from services.router.metrics import RouterMetrics
from services.router.settings import CacheSettings

SERVICE = "cache"
_STORE_TIMEOUT_S = 5.0
_STORE_BATCH = 32
SEAL_BYTES = 28
RESPONSE = cache_pb2.CACHE_KIND_RESPONSE
ENCODING = cache_pb2.CACHE_KIND_ENCODING
log = logs.get(__name__)
_Call = grpc.aio.UnaryUnaryCall[cache_pb2.LookupRequest, cache_pb2.LookupResponse]


@dataclass(frozen=True, slots=True)
class _Write:
    kind: cache_pb2.CacheKind
    entry: cache_pb2.StoreEntry


class Lookup:
    """A look-up under way; it runs while its owner does something else."""

    def __init__(
        self,
        call: _Call,
        kind: cache_pb2.CacheKind,
        keys: Sequence[bytes],
        scope: ScopeKeys,
        metrics: RouterMetrics,
    ) -> None:
        self._call = call
        self._kind = kind
        self._keys = keys
        self._scope = scope
        self._metrics = metrics

    async def value(self) -> bytes | None:
        """The first value found, opened; None when there is none in time or it is not ours."""
        outcome, found = "miss", None
        try:
            reply = await self._call
            for key, result in zip(self._keys, reply.results, strict=False):
                if result.HasField("value"):
                    found = self._scope.open(key, result.value)
                    outcome = "corrupt" if found is None else "hit"
                if found is not None:
                    break
        except grpc.aio.AioRpcError as error:
            outcome = "late" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else "away"
        finally:
            self._call.cancel()
            self._metrics.cache.labels(_name(self._kind), outcome).inc()
        return found

    def abandon(self) -> None:
        """Stops asking."""
        self._call.cancel()


class CacheClient:
    """Looks up and stores sealed values. `run` is what stores, in a task of the service."""

    def __init__(
        self, address: str, tls: Tls, mesh: MeshSecret, settings: CacheSettings, metrics: RouterMetrics
    ) -> None:
        self._channel = transport.channel(address, tls)
        self._stub = cache_pb2_grpc.CacheServiceStub(self._channel)
        self._metadata = mesh.metadata(SERVICE)
        self._settings = settings
        self._metrics = metrics
        self._queue: asyncio.Queue[_Write] = asyncio.Queue(settings.queue)

    def look_up(self, kind: cache_pb2.CacheKind, keys: Sequence[bytes], scope: ScopeKeys) -> Lookup:
        """Begins to look for the first of `keys` that has a value."""
        request = cache_pb2.LookupRequest(kind=kind, keys=keys)
        call = self._stub.Lookup(request, timeout=self._settings.lookup_s, metadata=self._metadata)
        return Lookup(call, kind, keys, scope, self._metrics)

    def store(
        self, kind: cache_pb2.CacheKind, key: bytes, value: bytes, scope: ScopeKeys, tag: bytes
    ) -> None:
        """Seals a value and queues it; drops it when it is too large or too much waits."""
        if len(value) + SEAL_BYTES > self._settings.value_bytes or self._queue.full():
            self._metrics.cache_dropped.inc()
            return
        sealed = scope.seal(key, value)
        entry = cache_pb2.StoreEntry(key=key, value=sealed, tenant_tag=tag, ttl_s=self._settings.ttl_s)
        self._queue.put_nowait(_Write(kind, entry))

    async def run(self) -> None:
        """Stores what is queued, in batches of one kind."""
        write = await self._queue.get()
        while True:
            batch, following = [write.entry], None
            while len(batch) < _STORE_BATCH and not self._queue.empty():
                following = self._queue.get_nowait()
                if following.kind != write.kind:
                    break
                batch.append(following.entry)
                following = None
            await self._send(write.kind, batch)
            write = following or await self._queue.get()

    async def close(self) -> None:
        """Closes the channel; what is still queued is lost."""
        await self._channel.close()

    async def _send(self, kind: cache_pb2.CacheKind, entries: list[cache_pb2.StoreEntry]) -> None:
        request = cache_pb2.StoreRequest(kind=kind, entries=entries)
        call = self._stub.Store(request, timeout=_STORE_TIMEOUT_S, metadata=self._metadata)
        try:
            reply = await call
            self._metrics.cache_dropped.inc(max(0, len(entries) - reply.accepted))
        except grpc.aio.AioRpcError as error:
            self._metrics.cache_dropped.inc(len(entries))
            log.info("cache_store_failed", code=error.code().name)
        finally:
            call.cancel()


def _name(kind: cache_pb2.CacheKind) -> str:
    return cache_pb2.CacheKind.Name(kind).removeprefix("CACHE_KIND_").lower()
