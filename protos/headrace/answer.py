"""One answer: a stream of events that survives refusals before it begins and breaks after it has.

Before the first token, a refusal that says when to retry (RetryInfo) is retried then, as long as the caller's
time allows, unless the request asked for a refusal instead of a wait. A broken stream is taken up from the
next token by `Generate(resume)`, on whichever router answers. Where nothing is left of it, the whole is made
again, compared with what arrived, and left out so far. A token is never seen twice, none is skipped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeAlias

import grpc

from headrace import errors
from headrace.arrived import Arrived
from headrace.lines import Line, Lines
from headrace.recovery import Ask, Recovery
from headrace.v1 import router_pb2, types_pb2

Delta = router_pb2.Delta
Finished = router_pb2.Finished
Event: TypeAlias = router_pb2.Delta | router_pb2.Finished
Call: TypeAlias = "grpc.aio.UnaryStreamCall[router_pb2.GenerateRequest, router_pb2.GenerateResponse]"
Start: TypeAlias = Callable[[Line, router_pb2.GenerateRequest, float | None], Call]
OnWait: TypeAlias = Callable[[errors.HeadraceError, float], None]
"""Told why the client asks again, and after how many seconds; what it raises ends the call."""


class Answer:
    """An async iterator of events: any number of Delta, then one Finished.

    Ends early, and frees the GPU, by `aclose()`, by leaving `async with`, by cancelling the task that reads,
    or when nobody holds it any more. Reading raises HeadraceError.
    """

    def __init__(
        self,
        start: Start,
        lines: Lines,
        request: router_pb2.GenerateRequest,
        timeout_s: float | None,
        on_wait: OnWait,
    ) -> None:
        self._start = start
        self._on_wait = on_wait
        self._lines = lines
        self._line: Line | None = None
        self._request = self._asked = request
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._call: Call | None = None
        self._arrived = Arrived()
        self._recovery = Recovery(len(lines), waits=not request.do_not_queue)
        self._ended = False

    @property
    def request_id(self) -> str:
        """The name of the request in the mesh."""
        return self._request.request_id

    @property
    def address(self) -> str | None:
        """Where the call that runs went; None while none does."""
        return self._line.address if self._line is not None else None

    @property
    def retries(self) -> int:
        """How often the whole request was sent again."""
        return self._recovery.retries

    @property
    def resumes(self) -> int:
        """How often the rest of the answer was asked for."""
        return self._recovery.resumes

    async def text(self) -> str:
        """The whole text. Ends the answer."""
        async with self:
            return "".join([event.text async for event in self])

    async def finished(self) -> Finished:
        """Reads to the end and returns its Finished with the text and the ids of all Deltas put in."""
        texts: list[str] = []
        ids: list[int] = []
        logprobs: list[types_pb2.PositionLogprobs] = []
        async with self:
            async for event in self:
                texts.append(event.text)
                ids.extend(event.token_ids)
                logprobs.extend(event.logprobs)
        assert isinstance(event, Finished)
        whole = Finished()
        whole.CopyFrom(event)
        whole.text = "".join(texts)
        whole.token_ids[:] = ids
        del whole.logprobs[:]
        whole.logprobs.extend(logprobs)
        return whole

    async def aclose(self) -> None:
        """Gives the answer up; does nothing after its end."""
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._ended:
            try:
                event = await self._next_event()
            except errors.HeadraceError as error:
                if not self._ended:
                    await self._recover(error)
                continue
            except BaseException:
                self._close()
                raise
            if (news := self._accept(event)) is not None:
                return news
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._drop_call()

    async def _next_event(self) -> Event:
        """The next event of the call that runs, starting one where there is none."""
        try:
            if self._call is None:
                self._line = self._lines.take()
                self._line = await self._lines.reach(self._line, self._remaining_s())
                self._recovery.asked(time.monotonic())
                self._call = self._start(self._line, self._asked, self._remaining_s())
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None
        except asyncio.CancelledError:
            raise_own_cancellation()
            raise errors.Cancelled("the mesh cancelled the call", code=grpc.StatusCode.CANCELLED) from None
        if not isinstance(message, router_pb2.GenerateResponse):  # EOF
            raise errors.StreamLost("the answer ended without its end", code=grpc.StatusCode.ABORTED)
        return message.delta if message.HasField("delta") else message.finished

    def _accept(self, event: Event) -> Event | None:
        """What of the event is news; ends the answer with its last one. Raises StreamLost."""
        if isinstance(event, Finished):
            self._close()
            return event
        try:
            news = self._arrived.news(event)
        except errors.StreamLost:
            self._close()
            raise
        if news is not None:
            self._recovery.arrived()
        return news

    async def _recover(self, error: errors.HeadraceError) -> None:
        """Prepares the next call after a failure, or ends the answer with its error."""
        line = self._line
        self._drop_call()
        try:
            step = self._recovery.step(error, len(self._arrived), time.monotonic())
        except errors.HeadraceError:
            self._ended = True
            raise
        if not self._fits(step.pause_s):
            self._ended = True
            raise error
        if step.elsewhere and line is not None:
            self._lines.broke(line)
        self._asked = self._whole() if step.ask is Ask.AGAIN else self._rest()
        self._on_wait(error, step.pause_s)
        await asyncio.sleep(step.pause_s)

    def _whole(self) -> router_pb2.GenerateRequest:
        self._arrived.from_the_start()
        return self._request

    def _rest(self) -> router_pb2.GenerateRequest:
        self._arrived.from_here()
        resume = router_pb2.Resume(
            request_id=self.request_id, next_index=len(self._arrived), text_bytes=self._arrived.text_bytes
        )
        return rest_of(self._request, resume)

    def _fits(self, pause_s: float) -> bool:
        remaining_s = self._remaining_s()
        return remaining_s is None or pause_s < remaining_s

    def _remaining_s(self) -> float | None:
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def _close(self) -> None:
        self._ended = True
        self._drop_call()

    def _drop_call(self) -> None:
        call, self._call = self._call, None
        line, self._line = self._line, None
        if call is not None:
            call.cancel()
        if line is not None:
            self._lines.give_back(line)


def rest_of(request: router_pb2.GenerateRequest, resume: router_pb2.Resume) -> router_pb2.GenerateRequest:
    """What asks for the rest of a request: its options are known where it is."""
    return router_pb2.GenerateRequest(
        resume=resume, stream=request.stream if request.HasField("stream") else None
    )


def raise_own_cancellation() -> None:
    """Raises CancelledError on when this task was cancelled; grpcio raises it for a status CANCELLED, too."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
