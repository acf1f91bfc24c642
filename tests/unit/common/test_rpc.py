from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio
from headrace.v1 import cache_pb2, cache_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common import errors, rpc, transport
from services.common.members import MeshSecret
from services.common.metrics import RpcMetrics
from services.common.replies import Replies
from tests.support.waiting import eventually

MESH = MeshSecret(b"s" * 32)
STALL_S = 0.2


class Servicer:
    """Does what the key of a look-up says."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.ended: list[Exception] = []

    async def Lookup(self, request: cache_pb2.LookupRequest, _: Any) -> cache_pb2.LookupResponse:
        if request.keys == [b"typed"]:
            raise errors.Overloaded("too much", retry_s=2)
        if request.keys == [b"bug"]:
            raise RuntimeError("a secret that callers must not see")
        return cache_pb2.LookupResponse()

    async def LoadSnapshot(self, request: Any, _: Any) -> AsyncIterator[cache_pb2.LoadSnapshotResponse]:
        yield cache_pb2.LoadSnapshotResponse(chunk=b"1")
        if request.name == "fails":
            raise errors.Unavailable("gone")
        if request.name == "hangs":
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

    async def SaveSnapshot(self, requests: AsyncIterator[Any], _: Any) -> cache_pb2.SaveSnapshotResponse:
        total = 0
        async for request in requests:
            total += len(request.chunk)
        return cache_pb2.SaveSnapshotResponse(stored_bytes=total)

    Store = Forget = LeaseQuota = Lookup


class Replier(Servicer):
    """The same with replies that are begun."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Replies | None = None

    def waits_for_longer_than_it_may(self) -> bool:
        since = self.last.since if self.last is not None else None
        return since is not None and asyncio.get_running_loop().time() - since > 2 * STALL_S

    def again(self, replies: Replies) -> None:
        assert not replies.busy
        replies.begin(cache_pb2.LoadSnapshotResponse(chunk=b"2"))
        replies.wake()

    async def LoadSnapshot(  # type: ignore[override]
        self, request: Any, _: Any, replies: Replies
    ) -> None:
        size = 8 << 20 if request.name in ("floods", "ends") else 1
        self.last = replies
        replies.begin(cache_pb2.LoadSnapshotResponse(chunk=bytes(size)))
        if request.name == "fails":
            raise errors.Unavailable("gone")
        if request.name == "again":
            replies.when_free(lambda: self.again(replies))
        if request.name == "ends":
            return
        self.started.set()
        try:
            await replies.wait()
        except Exception as error:
            self.ended.append(error)
            raise
        finally:
            self.cancelled.set()


class Served:
    """A server with the servicer and a channel to it."""

    def __init__(self, registry: CollectorRegistry, servicer: Servicer, channel: grpc.aio.Channel) -> None:
        self.registry, self.servicer, self.channel = registry, servicer, channel
        self.stub = cache_pb2_grpc.CacheServiceStub(channel)
        self.member = MESH.metadata("cache")

    def count(self, method: str, code: str) -> float:
        labels = {"method": f"CacheService.{method}", "code": code}
        return self.registry.get_sample_value("headrace_rpc_calls_total", labels) or 0


class Refusing(Servicer):
    """Refuses all, and knows whether others hold a request still."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []

    def held_elsewhere(self) -> int:
        own = 2  # the list, and the argument of getrefcount
        return sum(sys.getrefcount(self.requests[at]) > own for at in range(len(self.requests)))

    async def Lookup(self, request: cache_pb2.LookupRequest, _: Any) -> cache_pb2.LookupResponse:
        self._refuse(request)
        raise AssertionError

    async def LoadSnapshot(  # type: ignore[override]
        self, request: Any, _: Any, replies: Replies
    ) -> None:
        self._refuse(request)

    def _refuse(self, request: Any) -> None:
        self.requests.append(request)
        try:
            raise KeyError
        except KeyError:
            raise errors.Overloaded("too much", retry_s=2) from None


@asynccontextmanager
async def serving(servicer: Servicer) -> AsyncIterator[Served]:
    registry = CollectorRegistry()
    server = transport.server()
    registrar = rpc.Registrar(server, RpcMetrics(registry), MESH, stall_s=STALL_S)
    registrar.add(cache_pb2.DESCRIPTOR.services_by_name["CacheService"], servicer, members_only="cache")
    port = transport.listen(server, transport.Listener("127.0.0.1:0"))
    await server.start()
    channel = transport.channel(f"127.0.0.1:{port}", transport.Tls())
    yield Served(registry, servicer, channel)
    await channel.close()
    await server.stop(0)


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(Servicer()) as found:
        yield found


@pytest_asyncio.fixture
async def replying() -> AsyncIterator[Served]:
    async with serving(Replier()) as found:
        yield found


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


async def test_a_stranger_is_refused_before_the_handler_and_counted(served: Served) -> None:
    error = await failure(served.stub.Lookup(cache_pb2.LookupRequest(keys=[b"bug"])))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    strangers = {"method": "CacheService.Lookup"}
    assert served.registry.get_sample_value("headrace_strangers_total", strangers) == 1


async def test_a_typed_error_arrives_with_its_details(served: Served) -> None:
    request = cache_pb2.LookupRequest(keys=[b"typed"])
    error = await failure(served.stub.Lookup(request, metadata=served.member))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(error.trailing_metadata() or ())
    assert trailers[errors.PUSHBACK_KEY] == "2000"
    assert errors.DETAILS_KEY in trailers


async def test_a_bug_is_internal_and_tells_nothing(served: Served) -> None:
    request = cache_pb2.LookupRequest(keys=[b"bug"])
    error = await failure(served.stub.Lookup(request, metadata=served.member))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")


async def test_bytes_that_are_no_message_are_invalid(served: Served) -> None:
    call = served.channel.unary_unary("/headrace.v1.CacheService/Lookup")
    error = await failure(call(b"\xff\xff\xff", metadata=served.member))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_end_a_client_stream(served: Served) -> None:
    call = served.channel.stream_unary("/headrace.v1.CacheService/SaveSnapshot")
    error = await failure(call(iter([b"\xff\xff\xff"]), metadata=served.member))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_that_fails_keeps_what_it_sent(served: Served) -> None:
    call: Any = load(served, "fails")
    assert (await call.read()).chunk == b"1"
    assert (await failure(call.read())).code() is grpc.StatusCode.UNAVAILABLE
    await eventually(lambda: served.count("LoadSnapshot", "UNAVAILABLE") == 1, "it is counted")


async def test_a_cancelled_stream_reaches_the_handler(served: Served) -> None:
    call: Any = load(served, "hangs")
    await served.servicer.started.wait()
    call.cancel()
    await served.servicer.cancelled.wait()
    await eventually(lambda: served.count("LoadSnapshot", "CANCELLED") == 1, "the cancel is counted")


async def test_a_client_stream_is_read_to_its_end(served: Served) -> None:
    pieces = iter([cache_pb2.SaveSnapshotRequest(chunk=b"ab"), cache_pb2.SaveSnapshotRequest(chunk=b"c")])
    reply = await served.stub.SaveSnapshot(pieces, metadata=served.member)
    assert reply.stored_bytes == 3


def load(served: Served, name: str) -> Any:
    return served.stub.LoadSnapshot(cache_pb2.LoadSnapshotRequest(name=name), metadata=served.member)


async def test_begun_replies_come_in_order_and_then_the_end(replying: Served) -> None:
    call = load(replying, "again")
    assert [each.chunk async for each in call] == [bytes(1), b"2"]
    assert await call.code() is grpc.StatusCode.OK


async def test_what_was_begun_before_a_failure_arrives_before_it(replying: Served) -> None:
    call = load(replying, "fails")
    assert (await call.read()).chunk == bytes(1)
    assert (await failure(call.read())).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_cancelled_call_reaches_who_waits_for_its_replies(replying: Served) -> None:
    call = load(replying, "hangs")
    await replying.servicer.started.wait()
    call.cancel()
    await replying.servicer.cancelled.wait()
    await eventually(lambda: replying.count("LoadSnapshot", "CANCELLED") == 1, "the cancel is counted")


async def test_a_client_that_does_not_read_holds_nothing_of_the_service(replying: Served) -> None:
    call = load(replying, "floods")
    await eventually(lambda: bool(replying.servicer.ended), "the handler is told")
    assert len((await call.read()).chunk) == 8 << 20
    assert (await failure(call.read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await eventually(lambda: replying.count("LoadSnapshot", "RESOURCE_EXHAUSTED") == 1, "it is counted")


async def test_a_client_that_never_read_and_goes_is_counted_once(replying: Served) -> None:
    call = load(replying, "floods")
    await eventually(lambda: bool(replying.servicer.ended), "the handler is told")
    call.cancel()
    await eventually(lambda: replying.count("LoadSnapshot", "CANCELLED") == 1, "the cancel is counted")


async def test_a_last_reply_that_waits_long_for_its_client_is_no_failure(replying: Served) -> None:
    call = load(replying, "ends")
    await eventually(replying.servicer.waits_for_longer_than_it_may, "it waits, and the server has looked")
    assert len((await call.read()).chunk) == 8 << 20
    assert await call.code() is grpc.StatusCode.OK


async def test_a_refused_request_is_let_go_of_and_waits_for_no_garbage_collection() -> None:
    servicer = Refusing()
    async with serving(servicer) as served:
        gc.disable()
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await served.stub.Lookup(cache_pb2.LookupRequest(), metadata=served.member)
            with pytest.raises(grpc.aio.AioRpcError):
                await served.stub.LoadSnapshot(cache_pb2.LoadSnapshotRequest(), metadata=served.member).read()
            assert len(servicer.requests) == 2
            await eventually(lambda: servicer.held_elsewhere() == 0, "both are let go of")
        finally:
            gc.enable()
