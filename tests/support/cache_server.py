"""A CacheService in the test's own process: a dictionary, with faults on demand."""

from __future__ import annotations

import asyncio
from typing import Self

from headrace.v1 import cache_pb2
from prometheus_client import CollectorRegistry

from services.common.members import MeshSecret
from services.common.metrics import RpcMetrics
from services.common.rpc import Context, Registrar
from services.common.transport import Listener, listen, server

SERVICE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"]


class CacheServer:
    """Keeps what it is given. `corrupt` changes what it returns, `hang` never answers a look-up."""

    def __init__(self, mesh: MeshSecret) -> None:
        self.entries: dict[bytes, cache_pb2.StoreEntry] = {}
        self.kinds: list[int] = []
        self.lookups = 0
        self.corrupt = False
        self.hang = False
        self.address = ""
        self._mesh = mesh
        self._server = server()

    async def start(self) -> Self:
        """Opens the listener."""
        registrar = Registrar(self._server, RpcMetrics(CollectorRegistry()), self._mesh)
        registrar.add(SERVICE, self, members_only="cache")
        port = listen(self._server, Listener("127.0.0.1:0"))
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self

    async def stop(self) -> None:
        """Closes it."""
        await self._server.stop(0)

    async def Lookup(self, request: cache_pb2.LookupRequest, _: Context) -> cache_pb2.LookupResponse:
        """What is there."""
        self.lookups += 1
        if self.hang:
            await asyncio.Event().wait()
        return cache_pb2.LookupResponse(results=[self._result(key) for key in request.keys])

    async def Store(self, request: cache_pb2.StoreRequest, _: Context) -> cache_pb2.StoreResponse:
        """Keeps all."""
        for entry in request.entries:
            self.entries[entry.key] = entry
            self.kinds.append(request.kind)
        return cache_pb2.StoreResponse(accepted=len(request.entries))

    async def Forget(self, _: cache_pb2.ForgetRequest, __: Context) -> cache_pb2.ForgetResponse:
        """Not used by routers' requests."""
        return cache_pb2.ForgetResponse()

    async def LeaseQuota(self, _: cache_pb2.LeaseQuotaRequest, __: Context) -> cache_pb2.LeaseQuotaResponse:
        """Grants nothing."""
        return cache_pb2.LeaseQuotaResponse()

    async def SaveSnapshot(self, _: object, __: Context) -> cache_pb2.SaveSnapshotResponse:
        """Keeps nothing."""
        return cache_pb2.SaveSnapshotResponse()

    async def LoadSnapshot(self, _: cache_pb2.LoadSnapshotRequest, __: Context) -> object:
        """Has nothing."""
        for piece in ():
            yield piece

    def _result(self, key: bytes) -> cache_pb2.LookupResult:
        entry = self.entries.get(key)
        if entry is None:
            return cache_pb2.LookupResult()
        value = bytes([entry.value[0] ^ 1]) + entry.value[1:] if self.corrupt else entry.value
        return cache_pb2.LookupResult(value=value)
