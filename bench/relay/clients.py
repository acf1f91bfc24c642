"""Clients of a relay or a router, and what they see: tokens, messages, and the time between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from headrace.v1 import router_pb2, types_pb2
from headrace.v1.router_pb2_grpc import RouterServiceStub

from services.common.transport import Tls, channel

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

TIMEOUT_S = 60.0


@dataclass(slots=True)
class Seen:
    """By all clients of one load, up to now."""

    tokens: int = 0
    messages: int = 0
    begun: int = 0  # streams that had their first token
    gaps_s: list[float] = field(default_factory=list)  # between messages of one stream
    first_s: list[float] = field(default_factory=list)  # from the call to its first token

    def message(self, tokens: int, before_s: float, now_s: float, *, first: bool) -> None:
        """One arrived; `before_s`: the message before it, or the call."""
        self.tokens += tokens
        self.messages += 1
        self.begun += first
        (self.first_s if first else self.gaps_s).append(now_s - before_s)


Stream = Callable[[int, Seen], Coroutine[Any, Any, None]]
"""Runs one request of so many tokens to its end."""
Once = Callable[[], Coroutine[Any, Any, None]]
"""One call for one token, answered at once."""


@dataclass(frozen=True)
class Ways:
    """How a contender is asked."""

    stream: Stream
    once: Once | None = None


@asynccontextmanager
async def over_grpc(
    address: str, prompt: Sequence[int], tokens_a_message: int, *, unary: bool = True
) -> AsyncIterator[Ways]:
    """Calls of RouterService. Raises AioRpcError, and RuntimeError for an answer that is not whole."""
    async with channel(address, Tls()) as connection:
        stub = RouterServiceStub(connection)
        flush = router_pb2.FlushPolicy(
            max_delay=Duration(seconds=int(tokens_a_message > 1)), max_tokens=tokens_a_message
        )

        async def stream(tokens: int, seen: Seen) -> None:
            await _stream(stub, request(prompt, tokens, flush), seen)

        async def once() -> None:
            await stub.GenerateUnary(request(prompt, 1), timeout=TIMEOUT_S)

        yield Ways(stream, once if unary else None)


def request(
    prompt: Sequence[int], tokens: int, flush: router_pb2.FlushPolicy | None = None
) -> router_pb2.GenerateRequest:
    """As all clients send it."""
    return router_pb2.GenerateRequest(
        token_ids=types_pb2.TokenIds(ids=prompt),
        max_tokens=tokens,
        sampling=types_pb2.SamplingParams(ignore_eos=True),
        latency_class=types_pb2.LATENCY_CLASS_INTERACTIVE,
        flush=flush,
    )


async def _stream(stub: RouterServiceAsyncStub, asked: router_pb2.GenerateRequest, seen: Seen) -> None:
    had, before_s = 0, time.monotonic()
    call = stub.Generate(asked, timeout=TIMEOUT_S)
    try:
        async for reply in call:
            if tokens := len(reply.delta.token_ids):
                now_s = time.monotonic()
                seen.message(tokens, before_s, now_s, first=not had)
                had, before_s = had + tokens, now_s
    finally:
        call.cancel()
    if had != asked.max_tokens:
        raise RuntimeError(f"{had} of {asked.max_tokens} tokens came")


async def in_turn(once: Once, calls: int, at_once: int) -> None:
    """So many calls, some of them at once."""
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await once()

    await asyncio.gather(*(caller() for _ in range(at_once)))
