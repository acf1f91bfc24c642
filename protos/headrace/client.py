"""A small asyncio client of a Headrace mesh.

    import asyncio
    from headrace.client import Headrace

    async def main() -> None:
        async with Headrace("127.0.0.1:50051") as mesh:
            question = {"role": "user", "content": "What does a headrace do for a water mill?"}
            async for event in mesh.generate(messages=[question], max_tokens=120):
                print(event.text, end="", flush=True)

    asyncio.run(main())

Needs grpcio, protobuf and googleapis-common-protos, nothing else of Headrace.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from headrace import errors
from headrace.addresses import addresses_in
from headrace.answer import (
    Answer,
    Call,
    Delta,
    Event,
    Finished,
    OnWait,
    raise_own_cancellation,
    rest_of,
)
from headrace.errors import HeadraceError
from headrace.lines import Line, Lines
from headrace.recovery import Ask, Recovery
from headrace.request import Message, build_request, put_prompt
from headrace.v1 import router_pb2

__all__ = ["Answer", "Delta", "Event", "Finished", "Headrace", "HeadraceError", "Tls", "build_request"]

Reply = TypeVar("Reply")
_MAX_MESSAGE_BYTES = 32 << 20
_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 2_000),  # without a byte: with the answer's time, 4 s until a router is lost
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 4_000),  # of any other ping: while one is under way gRPC sends no second
    ("grpc.http2.max_pings_without_data", 0),  # who reads an answer sends none
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # of one attempt to connect: a busy router answers late
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
)


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files of a TLS connection, PEM. Without an authority the system's roots are trusted."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Headrace:
    """A connection to a mesh. Use it in one event loop; close it, or use `async with`.

    Args:
        address: `host:port` or `unix:path`; several of them, with commas between, are taken in turn.
        api_key: `hr_…`; None where the mesh needs none.
        tls: None for plain text; off loopback a key should not travel without TLS.
        timeout_s: seconds that a call may take where it does not say itself; None: no limit.
        on_wait: called before the client asks again by itself, with the error and the seconds until then.

    Raises:
        ValueError: an address that is none.
        OSError: a file of `tls` that cannot be read.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        timeout_s: float | None = None,
        on_wait: OnWait = lambda error, pause_s: None,
    ) -> None:
        self._on_wait = on_wait
        self._lines = Lines(addresses_in(address), lambda each: channel(each, tls))
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout_s = timeout_s
        self._answers: weakref.WeakSet[Answer] = weakref.WeakSet()

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Answer:
        """Asks for an answer, streamed; nothing is sent before it is read.

        Args:
            prompt: plain text to continue; or give `messages` of a chat, or `token_ids`.
            timeout_s: seconds for the whole answer, retries included.
            options: fields of Options and of SamplingParams by name.

        Raises:
            TypeError: not exactly one prompt, or an option that does not exist.
            ValueError: a value that no message holds, such as a negative `max_tokens`.
        """
        return self.answer(build_request(prompt, messages, token_ids, **options), timeout_s=timeout_s)

    def answer(self, request: router_pb2.GenerateRequest, *, timeout_s: float | None = None) -> Answer:
        """`generate` for who builds the message; gives it a name and a seed where it has none."""
        request.request_id = request.request_id or uuid.uuid4().hex
        if request.sampling.temperature and not request.sampling.HasField("seed"):
            request.sampling.seed = secrets.randbits(64)
        answer = Answer(self._start, self._lines, request, timeout_s or self._timeout_s, self._on_wait)
        self._answers.add(answer)
        return answer

    async def generate_unary(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Finished:
        """The whole answer in one message; takes and raises what `generate` does, and HeadraceError."""
        return await self.answer_unary(
            build_request(prompt, messages, token_ids, **options), timeout_s=timeout_s
        )

    async def answer_unary(
        self, request: router_pb2.GenerateRequest, *, timeout_s: float | None = None
    ) -> Finished:
        """`generate_unary` for who builds the message; names the request where it has no name."""
        request.request_id = request.request_id or uuid.uuid4().hex
        rest = rest_of(request, router_pb2.Resume(request_id=request.request_id))
        found: Finished = await self._unary("GenerateUnary", request, timeout_s, rest)
        return found

    async def models(self, *, timeout_s: float | None = None) -> list[router_pb2.Model]:
        """The models that can be asked for now. Raises HeadraceError."""
        found = await self._unary("ListModels", router_pb2.ListModelsRequest(), timeout_s)
        return list(found.models)

    async def count_tokens(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Prompt tokens that a generation would use. Raises HeadraceError."""
        request = router_pb2.CountTokensRequest(model=model)
        put_prompt(request, prompt, messages, None)
        found: router_pb2.CountTokensResponse = await self._unary("CountTokens", request, timeout_s)
        return found.tokens

    async def close(self) -> None:
        """Gives up all answers that run and closes the connection."""
        for answer in list(self._answers):
            await answer.aclose()
        await self._lines.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _start(self, line: Line, request: router_pb2.GenerateRequest, timeout_s: float | None) -> Call:
        return line.stub.Generate(request, timeout=timeout_s, metadata=self._metadata)

    async def _unary(self, method: str, request: Any, timeout_s: float | None, rest: Any = None) -> Any:
        """One unary call, retried when the mesh says when and the time allows, and where its router is lost.

        Args:
            rest: what asks for the outcome of a call that broke; None: the same again.
        """
        limit_s = timeout_s or self._timeout_s
        deadline_s = None if limit_s is None else time.monotonic() + limit_s
        waits = not getattr(request, "do_not_queue", False)
        recovery, asked = Recovery(len(self._lines), waits=waits), request
        while True:
            line = self._lines.take()
            try:
                line = await self._lines.reach(line, _until(deadline_s))
                recovery.asked(time.monotonic())
                return await self._call_once(line, method, asked, _until(deadline_s))
            except HeadraceError as error:
                step = recovery.step(error, 0, time.monotonic())
                if (remaining_s := _until(deadline_s)) is not None and step.pause_s >= remaining_s:
                    raise
                if step.elsewhere:
                    self._lines.broke(line)
                self._on_wait(error, step.pause_s)
            finally:
                self._lines.give_back(line)
            asked = request if step.ask is Ask.AGAIN or rest is None else rest
            await asyncio.sleep(step.pause_s)

    async def _call_once(self, line: Line, method: str, request: Any, timeout_s: float | None) -> Any:
        call = getattr(line.stub, method)
        return await _outcome(call(request, timeout=timeout_s, metadata=self._metadata))


def _until(deadline_s: float | None) -> float | None:
    """Seconds that are left."""
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


async def _outcome(call: Awaitable[Reply]) -> Reply:
    """The reply of a unary call; cancels it when the caller leaves, and raises HeadraceError."""
    cancel: Callable[[], object] = call.cancel  # type: ignore[attr-defined]
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc(error) from None
    except asyncio.CancelledError:
        raise_own_cancellation()
        raise errors.Cancelled("the mesh cancelled the call", code=grpc.StatusCode.CANCELLED) from None
    finally:
        cancel()


def channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    """A channel as this client uses it; close it. Reads the files of `tls`: raises OSError."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
    files = (tls.authority, tls.key, tls.certificate)
    credentials = grpc.ssl_channel_credentials(*(each.read_bytes() if each else None for each in files))
    return grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
