"""Stands between a worker and its router's session port, sees every frame, and does harm when a test says so.

    async with SessionRelay(router_address) as relay:
        …a worker dials relay.address…
        relay.border = Border({"request-1": 5})     # nothing of it from output index 5 on passes
        await relay.border.all_reached()
        await relay.die()                           # what the router sees when the worker is killed

It knows no secret: the handshake passes through it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import islice
from typing import Any, Self

import grpc
from headrace.v1 import session_pb2, session_pb2_grpc

from services.common import transport
from tests.support.waiting import eventually

SHAKEN = 2
"""Frames of a handshake."""


class Border:
    """Output indices beyond which nothing passes in this session, by request.

    The worker must not forget what the router lacks: acknowledgements stay before the first frame that did
    not pass whole.
    """

    def __init__(self, offsets: Mapping[str, int]) -> None:
        self.offsets = dict(offsets)
        self.reached: set[str] = set()
        self._whole_before: int | None = None
        self._requests: dict[tuple[int, int], str] = {}
        self._open = False

    async def all_reached(self) -> None:
        """Waits until every request stands at its border."""
        await eventually(lambda: self.reached == self.offsets.keys(), "all stand at the border", 120)

    def forget(self) -> None:
        """The session is over: in the next one the worker itself tells again what was held back."""
        self._whole_before, self._open = None, True

    def down(self, frame: session_pb2.RouterFrame) -> session_pb2.RouterFrame:
        """A command, with the acknowledgement that is true for the worker."""
        for submit in frame.submits:
            self._requests[submit.slot, submit.attempt] = submit.request_id
        if self._whole_before is not None:
            frame.acknowledged_frame = min(frame.acknowledged_frame, self._whole_before - 1)
        return frame

    def up(self, frame: session_pb2.WorkerFrame) -> session_pb2.WorkerFrame:
        """News, as far as they may pass."""
        if not self._open:
            told = [*_spread(frame.next_tokens), *frame.updates]
            frame.ClearField("next_tokens")
            news = [passing for update in told if (passing := self._cut(update, frame.number))]
            del frame.updates[:]
            frame.updates.extend(news)
        return frame

    def _cut(self, update: session_pb2.SequenceUpdate, number: int) -> session_pb2.SequenceUpdate | None:
        """The part of an update before its request's border."""
        name = self._requests.get((update.slot, update.attempt), "")
        room = self.offsets.get(name, 1 << 31) - update.first_index
        if len(update.token_ids) < room or (len(update.token_ids) == room and not update.HasField("end")):
            return update
        self.reached.add(name)
        self._whole_before = self._whole_before or number
        del update.token_ids[max(0, room) :], update.logprobs[max(0, room) :]
        update.ClearField("end")
        return update if update.token_ids else None


def _spread(told: session_pb2.NextTokens) -> Iterator[session_pb2.SequenceUpdate]:
    """The same as updates."""
    ids, counts = iter(told.token_ids), told.counts or [1] * len(told.slots)
    for slot, attempt, index, count in zip(told.slots, told.attempts, told.indices, counts, strict=True):
        new = list(islice(ids, count))
        yield session_pb2.SequenceUpdate(slot=slot, attempt=attempt, first_index=index, token_ids=new)


class _Conversation:
    """One session that passes through."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.down: asyncio.Queue[session_pb2.RouterFrame | None] = asyncio.Queue()


class SessionRelay(session_pb2_grpc.SessionServiceServicer):
    """One worker's way to a router."""

    def __init__(self, router: str) -> None:
        self.border: Border | None = None
        self.credit = True
        """False: the router hears of no credit, so the worker gets nothing to do."""
        self._granted = session_pb2.WorkerFrame()
        self._withheld = False
        self._channel = transport.channel(router, transport.Tls())
        self._server = transport.server()
        self._port = 0
        self._alive = True
        self._passing = asyncio.Event()
        self._passing.set()
        self._conversations: set[_Conversation] = set()

    @property
    def address(self) -> str:
        """Where the worker dials."""
        return f"127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, self._server)
        self._port = transport.listen(self._server, transport.Listener("127.0.0.1:0"))
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await self._server.stop(0)
        await self._channel.close()

    def cut(self) -> None:
        """Breaks the session; the worker may dial again."""
        if self.border is not None:
            self.border.forget()
        for conversation in self._conversations:
            conversation.call.cancel()
            conversation.down.put_nowait(None)

    def die(self) -> None:
        """Breaks the session for good: nobody answers any more."""
        self._alive = False
        self.cut()

    def revive(self) -> None:
        """Lets the worker in again, and everything pass."""
        self._alive, self.border = True, None
        self._passing.set()

    def silence(self) -> None:
        """Nothing passes either way, and nothing breaks."""
        self._passing.clear()

    async def Session(
        self, frames: AsyncIterator[session_pb2.WorkerFrame], context: Any
    ) -> AsyncIterator[session_pb2.RouterFrame]:
        """One session, frame by frame."""
        if not self._alive:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "nobody is there")
        self._granted.Clear()
        conversation = _Conversation(session_pb2_grpc.SessionServiceStub(self._channel).Session())
        self._conversations.add(conversation)
        tasks = [
            asyncio.create_task(self._upwards(conversation, frames)),
            asyncio.create_task(self._downwards(conversation)),
        ]
        try:
            while (frame := await conversation.down.get()) is not None:
                yield frame
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        finally:
            self._conversations.discard(conversation)
            conversation.call.cancel()
            for task in tasks:
                task.cancel()

    async def _upwards(
        self, conversation: _Conversation, frames: AsyncIterator[session_pb2.WorkerFrame]
    ) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async for frame in frames:
                await self._passing.wait()
                await conversation.call.write(self._raised(frame) if frame.number > SHAKEN else frame)
            await conversation.call.done_writing()

    async def _downwards(self, conversation: _Conversation) -> None:
        try:
            while (frame := await conversation.call.read()) is not grpc.aio.EOF:
                await self._passing.wait()
                if frame.HasField("welcome"):
                    del frame.welcome.siblings[:]  # the worker is to know no way around
                conversation.down.put_nowait(self.border.down(frame) if self.border else frame)
        except grpc.aio.AioRpcError:
            pass
        await self._passing.wait()
        conversation.down.put_nowait(None)

    def _raised(self, frame: session_pb2.WorkerFrame) -> session_pb2.WorkerFrame:
        if frame.HasField("credit"):
            self._granted.CopyFrom(frame)
        if not self.credit:
            frame.credit.Clear()
            frame.credit.SetInParent()
            frame.ClearField("foreground_credit")
        elif self._withheld and not frame.HasField("credit") and self._granted.HasField("credit"):
            frame.credit.CopyFrom(self._granted.credit)  # a worker tells it once
            if self._granted.HasField("foreground_credit"):
                frame.foreground_credit.CopyFrom(self._granted.foreground_credit)
        self._withheld = not self.credit
        return self.border.up(frame) if self.border else frame
