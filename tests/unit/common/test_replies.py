"""How a call ends whose client goes while a reply waits for it; the order of events is the test's."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from headrace.v1 import cache_pb2
from prometheus_client import CollectorRegistry

from services.common import errors, rpc
from services.common.metrics import RpcMetrics
from services.common.replies import Replies
from tests.support.waiting import eventually

SERVICE = cache_pb2.DESCRIPTOR.services_by_name["CacheService"]


class Refusing:
    """Begins a reply and refuses the rest."""

    async def LoadSnapshot(self, request: Any, _: Any, replies: Replies) -> None:
        replies.begin(cache_pb2.LoadSnapshotResponse(chunk=b"1"))
        raise errors.Overloaded("too much", retry_s=2)

    async def Lookup(self, request: Any, _: Any) -> None: ...

    Store = Forget = LeaseQuota = SaveSnapshot = Lookup


class Server:
    """Keeps what handles the method."""

    handle: Any = None

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        details = type("Details", (), {"method": "/headrace.v1.CacheService/LoadSnapshot"})
        self.handle = handlers[0].service(details).unary_stream


class Context:
    """A client that reads, or goes, when it is told to."""

    def __init__(self) -> None:
        self.reads: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.written = False
        self.aborted = False

    def peer(self) -> str:
        return "unix:"

    async def write(self, _: Any) -> None:
        self.written = True
        if not await self.reads:
            raise grpc.aio.InternalError("the client has gone")

    async def abort(self, *_: Any, **__: Any) -> None:
        self.aborted = True
        raise grpc.aio.AbortError


class Called:
    """A call that has begun its reply and cannot say yet why it ends."""

    def __init__(self) -> None:
        self.registry, self.context, server = CollectorRegistry(), Context(), Server()
        rpc.Registrar(server, RpcMetrics(self.registry)).add(SERVICE, Refusing())  # type: ignore[arg-type]
        self.call = asyncio.ensure_future(server.handle(cache_pb2.LoadSnapshotRequest(), self.context))

    def count(self, code: str) -> float:
        labels = {"method": "CacheService.LoadSnapshot", "code": code}
        return self.registry.get_sample_value("headrace_rpc_calls_total", labels) or 0


async def test_who_goes_before_the_refusal_can_be_told_is_counted_as_gone() -> None:
    called = Called()
    await eventually(lambda: called.context.written, "the reply is begun")
    called.context.reads.set_result(False)
    with pytest.raises(grpc.aio.InternalError):
        await called.call
    assert (called.count("CANCELLED"), called.count("RESOURCE_EXHAUSTED")) == (1, 0)
    assert not called.context.aborted


async def test_who_reads_is_told_why_the_call_ends() -> None:
    called = Called()
    await eventually(lambda: called.context.written, "the reply is begun")
    assert not called.context.aborted
    called.context.reads.set_result(True)
    with pytest.raises(grpc.aio.AbortError):
        await called.call
    assert (called.count("CANCELLED"), called.count("RESOURCE_EXHAUSTED")) == (0, 1)
