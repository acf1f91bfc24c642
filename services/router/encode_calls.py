"""Calls of the tokenizer service: short texts of one scope that come while others of it are away go together.

A call costs the router as much whether it has one text or many. Who finds no other away goes at once: only a
busy router lets texts wait, for what is away to come back, and for WAIT_S at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from headrace.v1 import tokenizer_pb2, types_pb2

from services.common import errors

SHORT_BYTES = 8 << 10
"""Longer ones go alone: nobody is to wait until they are encoded."""
BATCH_BYTES = 16 << 10
WAIT_S = 0.005
Ask = Callable[[tokenizer_pb2.EncodeRequest, float], Awaitable[tokenizer_pb2.EncodeResponse]]
"""Encodes what a request has within so many seconds."""
Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
"""Starts a named task of the service."""


class Lane(NamedTuple):
    """What all texts of a call have in common: none shares a call with another tenant's, nor with another
    user's where the tenant keeps what is cached apart by user."""

    model: str
    scope_digest: bytes
    tenant_tag: bytes


class Encoded(NamedTuple):
    """A text's encoding, or why there is none, and what it was made with."""

    item: tokenizer_pb2.EncodedItem
    digests: types_pb2.ModelDigests


class _Batch:
    """Texts that gather, and go as one call."""

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer
        self.asked: list[tuple[tokenizer_pb2.EncodeItem, asyncio.Future[Encoded]]] = []
        self.bytes = 0
        self.timeout_s = 0.0
        self.call: asyncio.Task[None] | None = None
        self._waiting = 0

    async def wait(self, item: tokenizer_pb2.EncodeItem, timeout_s: float) -> Encoded:
        """What comes back for one text. A call that nobody waits for any more is given up."""
        answer: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self.asked.append((item, answer))
        self.bytes += item.ByteSize()
        self.timeout_s = max(self.timeout_s, timeout_s)
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise errors.DeadlineExceeded("encoding took too long", reason="ENCODE_TIMEOUT") from None
        finally:
            self._waiting -= 1
            if not self._waiting and self.call is not None:
                self.call.cancel()

    def wanted(self) -> tuple[list[tokenizer_pb2.EncodeItem], list[asyncio.Future[Encoded]]]:
        """The texts that are still waited for, and where their answers go."""
        left = [(item, answer) for item, answer in self.asked if not answer.done()]
        return [item for item, _ in left], [answer for _, answer in left]


class EncodeCalls:
    """Those of one router."""

    def __init__(self, ask: Ask, spawn: Spawn) -> None:
        self._ask = ask
        self._spawn = spawn
        self._away: dict[Lane, int] = {}
        self._gathering: dict[Lane, _Batch] = {}

    async def encode(self, lane: Lane, item: tokenizer_pb2.EncodeItem, timeout_s: float) -> Encoded:
        """Encodes one text. Raises as `TokenizerPool.encode`, for itself alone what is its own fault."""
        size = item.ByteSize()
        if size > SHORT_BYTES:
            return (await self._call(lane, [item], timeout_s))[0]
        if lane in self._away:
            return await self._batch(lane, size).wait(item, timeout_s)
        with self._on_the_way(lane):
            return (await self._call(lane, [item], timeout_s))[0]

    def _batch(self, lane: Lane, size: int) -> _Batch:
        """The one that gathers and has room for so many bytes."""
        found = self._gathering.get(lane)
        if found is not None and found.bytes + size > BATCH_BYTES:
            self._send(lane)
            found = None
        if found is None:
            timer = asyncio.get_running_loop().call_later(WAIT_S, self._send, lane)
            found = self._gathering[lane] = _Batch(timer)
        return found

    def _send(self, lane: Lane) -> None:
        batch = self._gathering.pop(lane, None)
        if batch is not None:
            batch.timer.cancel()
            batch.call = self._spawn(self._run(lane, batch), "encode")

    async def _run(self, lane: Lane, batch: _Batch) -> None:
        items, answers = batch.wanted()
        if not items:
            return
        try:
            with self._on_the_way(lane):
                found = await self._call(lane, items, batch.timeout_s)
            for answer, each in zip(answers, found, strict=True):
                if not answer.done():
                    answer.set_result(each)
        except Exception as error:
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
        finally:
            for answer in answers:
                answer.cancel()

    @contextmanager
    def _on_the_way(self, lane: Lane) -> Iterator[None]:
        """A call that is away; when it is back those go that have gathered."""
        self._away[lane] = self._away.get(lane, 0) + 1
        try:
            yield
        finally:
            self._away[lane] -= 1
            if not self._away[lane]:
                del self._away[lane]
            self._send(lane)

    async def _call(
        self, lane: Lane, items: Sequence[tokenizer_pb2.EncodeItem], timeout_s: float
    ) -> list[Encoded]:
        request = tokenizer_pb2.EncodeRequest(
            model=lane.model, items=items, scope_digest=lane.scope_digest, tenant_tag=lane.tenant_tag
        )
        reply = await self._ask(request, timeout_s)
        if len(reply.items) != len(items):
            raise errors.Internal("the tokenizer service answered for another number of texts")
        return [Encoded(each, reply.digests) for each in reply.items]
