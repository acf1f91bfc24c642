"""Registers a servicer on a server; everything that holds for all RPCs happens here and only here.

* bytes that are no message become INVALID_ARGUMENT instead of grpcio's INTERNAL;
* on internal services the member token is checked before the handler runs;
* exceptions of the tree become their status with details, any other one is logged and becomes INTERNAL;
* CancelledError is always raised on: grpcio leaks memory when it is swallowed;
* where a bound is set, a client that does not read ends the call that waits for it;
* what goes to one connection in one turn of the loop leaves together (`bursts`);
* calls are counted and timed.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf import message, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from services.common import errors, logs, members
from services.common.bursts import Bursts
from services.common.metrics import RpcMetrics, from_zero
from services.common.replies import Replies
from services.common.tallies import Tally

log = logs.get(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class Malformed:
    """Stands for a request that could not be parsed."""


class Registrar:
    """Adds services to one server.

    A stream's method is an async generator of its replies, or a coroutine that takes `Replies` to begin them.

    Args:
        mesh: the mesh secret, for services that only members may call.
        stall_s: how long one of these replies may wait for its client, in seconds; None: for ever.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        metrics: RpcMetrics,
        mesh: members.MeshSecret | None = None,
        stall_s: float | None = None,
    ) -> None:
        self._server = server
        self._metrics = metrics
        self._mesh = mesh
        self._stall_s = stall_s
        self._bursts = Bursts()

    def add(self, service: ServiceDescriptor, servicer: object, *, members_only: str | None = None) -> None:
        """Registers all methods of `service`. `members_only` names the service in members' tokens."""
        handlers = {
            method.name: self._handler(method, getattr(servicer, method.name), members_only)
            for method in service.methods
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )

    def _handler(
        self, method: MethodDescriptor, behaviour: Callable[..., Any], members_only: str | None
    ) -> grpc.RpcMethodHandler[Any, Any]:
        mesh = self._mesh if members_only else None
        call = _Call(method, self._metrics, mesh, members_only or "", self._stall_s, self._bursts)
        make, wrap = _KINDS[method.client_streaming, method.server_streaming]
        handler: grpc.RpcMethodHandler[Any, Any] = make(
            wrap(call, behaviour),
            request_deserializer=_parser(message_factory.GetMessageClass(method.input_type)),
            response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
        return handler


class _Call:
    """The checks around one method."""

    def __init__(
        self,
        method: MethodDescriptor,
        metrics: RpcMetrics,
        mesh: members.MeshSecret | None,
        service: str,
        stall_s: float | None,
        bursts: Bursts,
    ) -> None:
        self._name = f"{method.containing_service.name}.{method.name}"
        self._metrics = metrics
        self._ended: dict[grpc.StatusCode, Tally] = {}
        self._seconds = metrics.seconds.labels(self._name)
        self._mesh = mesh
        if mesh is not None:
            from_zero(metrics.strangers, (self._name,))
        self._service = service
        self._stall_s = stall_s
        self._bursts = bursts
        self._streaming_request = method.client_streaming

    def unary(self, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def handle(request: Any, context: Context) -> Any:
            started = time.monotonic()
            code = grpc.StatusCode.OK
            try:
                return await behaviour(self._checked(request, context), context)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                problem, request = self._problem(error), None
                code = problem.code
                await errors.abort(context, problem)
            finally:
                self._count(code, started)
                self._bursts.to(context.peer()).writes()

        return handle

    def stream(self, behaviour: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        if inspect.iscoroutinefunction(behaviour):
            return self._replying(behaviour)

        async def all_of(request: Any, context: Context, _: Replies) -> None:
            async with aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
                    await context.write(reply)

        return self._replying(all_of)

    def _replying(self, behaviour: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def handle(request: Any, context: Context) -> None:
            started = time.monotonic()
            code = grpc.StatusCode.OK
            connection = self._bursts.to(context.peer())
            replies = Replies(context.write, connection.writes, self._stall_s)
            try:
                await behaviour(self._checked(request, context), context, replies)
                await replies.finish()
            except (asyncio.CancelledError, grpc.aio.InternalError):  # nobody is there to write to
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                problem, request, code = self._problem(error), None, grpc.StatusCode.CANCELLED
                await replies.finish()  # raises when nobody is there any more
                code = problem.code
                await errors.abort(context, problem)
            finally:
                self._count(code, started)
                connection.writes()
                replies.close()

        return handle

    def _checked(self, request: Any, context: Context) -> Any:
        if self._mesh is not None:
            self._check_member(self._mesh, context)
        if self._streaming_request:
            return _parsed(request)
        if isinstance(request, Malformed):
            raise _malformed()
        return request

    def _check_member(self, mesh: members.MeshSecret, context: Context) -> None:
        try:
            mesh.check_token(self._service, metadata(context).get(members.METADATA_KEY))
        except errors.Unauthenticated:
            note_stranger(self._metrics, self._name, context)
            raise

    def _problem(self, error: Exception) -> errors.HeadraceError:
        """What the caller is told.

        NOTE: grpcio keeps what a handler aborts with in a cycle with the call, so whatever the frames of the
        error hold, megabytes of a request among it, would wait for the garbage collector.
        """
        if isinstance(error, errors.HeadraceError):
            _let_go_of_frames(error)
            return error
        log.error("rpc_failed", method=self._name, exc_info=error)
        _let_go_of_frames(error)
        return errors.Internal("internal error")

    def _count(self, code: grpc.StatusCode, started: float) -> None:
        ended = self._ended.get(code)
        if ended is None:
            ended = self._ended[code] = self._metrics.calls.labels(self._name, code.name)
        ended.inc()
        self._seconds.observe(time.monotonic() - started)


_KINDS: dict[tuple[bool, bool], tuple[Callable[..., Any], Callable[[_Call, Any], Any]]] = {
    (False, False): (grpc.unary_unary_rpc_method_handler, _Call.unary),
    (False, True): (grpc.unary_stream_rpc_method_handler, _Call.stream),
    (True, False): (grpc.stream_unary_rpc_method_handler, _Call.unary),
    (True, True): (grpc.stream_stream_rpc_method_handler, _Call.stream),
}
"""By (client streaming, server streaming): what makes the handler, and what wraps the behaviour."""


def _let_go_of_frames(error: BaseException | None) -> None:
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def note_stranger(metrics: RpcMetrics, method: str, context: Context) -> None:
    """Counts a call of somebody who is no member; reports it once a minute for each host."""
    metrics.strangers.labels(method).inc()
    host = context.peer().rpartition(":")[0]
    if metrics.seldom.due(f"{method} {host}", time.monotonic()):
        log.warning("stranger", method=method, peer=host)


def metadata(context: Context) -> dict[str, str | bytes]:
    """The call's metadata, of each key the last value. gRPC makes them anew for who asks again."""
    return dict(context.invocation_metadata() or ())


def _parser(kind: type[message.Message]) -> Callable[[bytes], Any]:
    parse = kind.FromString

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except (message.DecodeError, ValueError):
            return Malformed()

    return deserialize


async def _parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Malformed):
            raise _malformed()
        yield request


def _malformed() -> errors.InvalidArgument:
    violation = errors.FieldViolation("request", "not a message of this method, or text that is not UTF-8")
    return errors.InvalidArgument(violation)
