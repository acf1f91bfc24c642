"""What waits for one client, and when it goes: the first token at once, later ones by class, merged.

A client message costs far more than a token, so tokens that become ready while a write is under way, or
within the flush window, travel together. The reader is woken once a message. A client that does not read is
bounded here and given up; it holds up nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from headrace.v1 import router_pb2, types_pb2

from services.common.errors import HeadraceError, SlowConsumer

Logprobs = Sequence[types_pb2.PositionLogprobs]


class Flush(NamedTuple):
    """When waiting tokens go: at whichever bound is reached first."""

    delay_s: float
    tokens: int


class Patience(NamedTuple):
    """What is borne of a client that does not read."""

    unsent_tokens: int
    stall_s: float


class Kept(NamedTuple):
    """All output, for who stores it."""

    text: list[str]
    logprobs: list[types_pb2.PositionLogprobs]


class Outlet:
    """The stream to one client: Delta messages, then exactly one Finished, or one error.

    With `whole` there are no Delta messages: Finished carries all. With `keep` all output stays in `kept`.
    """

    def __init__(self, flush: Flush, patience: Patience, *, whole: bool = False, keep: bool = False) -> None:
        self.kept = Kept([], [])
        self._keep = keep
        self._most_tokens = 1 if flush.delay_s == 0 else flush.tokens
        self._delay_s = flush.delay_s
        self._patience = patience
        self._whole = whole
        self._loop = asyncio.get_running_loop()
        self._index = 0
        self._ids: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[types_pb2.PositionLogprobs] = []
        self._due = False
        self._timer: asyncio.TimerHandle | None = None
        self._waits_since = 0.0
        """When the first of the waiting tokens came, on the loop's clock."""
        self._reader: asyncio.Future[None] | None = None
        self._writing_since: float | None = None
        self._end: router_pb2.Finished | HeadraceError | None = None
        self._over = False

    @property
    def ended(self) -> bool:
        """Whether the terminal event is decided."""
        return self._end is not None

    def push(self, ids: Sequence[int], text: str, logprobs: Logprobs = ()) -> None:
        """Adds output. Nothing is added after the end."""
        if self._end is not None:
            return
        self._ids += ids
        if text:
            self._text.append(text)
        if logprobs:
            self._logprobs.extend(logprobs)
        if self._keep:
            self.kept.text.append(text)
            self.kept.logprobs.extend(logprobs)
        if not (self._due or self._whole):
            if self._index == 0 or len(self._ids) >= self._most_tokens:
                self._make_due()
            elif len(self._ids) == len(ids):
                self._wait_for_more()

    def finish(self, finished: router_pb2.Finished) -> None:
        """Ends the stream well. Only the first end counts."""
        self._conclude(finished)

    def fail(self, error: HeadraceError) -> None:
        """Ends the stream with an error. Only the first end counts."""
        self._conclude(error)

    def too_slow(self, now: float) -> SlowConsumer | None:
        """The error for a client that has not read for too long or has too much waiting."""
        if self._writing_since is None or not self._ids:
            return None
        stuck_s = now - self._writing_since
        if len(self._ids) <= self._patience.unsent_tokens and stuck_s <= self._patience.stall_s:
            return None
        return SlowConsumer(f"{len(self._ids)} tokens wait for a client that does not read")

    async def next(self) -> router_pb2.GenerateResponse | None:
        """The next message; None after Finished. For one reader.

        Raises:
            HeadraceError: the stream failed.
        """
        self._writing_since = None
        while not self._due and self._end is None:
            self._reader = self._loop.create_future()
            await self._reader
        if self._over:
            return None
        message = self._take()
        self._writing_since = time.monotonic()
        return message

    def _wait_for_more(self) -> None:
        """Tokens wait again. A timer that still runs for earlier ones is set on when it is over."""
        self._waits_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._waits_since + self._delay_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        if self._due or not self._ids:
            return
        due_s = self._waits_since + self._delay_s
        if self._loop.time() >= due_s:
            self._make_due()
        else:
            self._timer = self._loop.call_at(due_s, self._time_is_up)

    def _make_due(self) -> None:
        self._due = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _conclude(self, end: router_pb2.Finished | HeadraceError) -> None:
        if self._end is None:
            self._end = end
            self._make_due()
            if self._timer is not None:
                self._timer.cancel()

    def _take(self) -> router_pb2.GenerateResponse:
        if isinstance(self._end, HeadraceError):
            self._over = True
            raise self._end
        if (self._ids or self._text) and not self._whole:
            return self._delta()
        assert self._end is not None
        self._over = True
        return router_pb2.GenerateResponse(
            finished=self._whole_answer(self._end) if self._whole else self._end
        )

    def _delta(self) -> router_pb2.GenerateResponse:
        message = router_pb2.GenerateResponse()
        delta = message.delta
        delta.index = self._index
        delta.text = "".join(self._text)
        delta.token_ids.extend(self._ids)
        if self._logprobs:
            delta.logprobs.extend(self._logprobs)
            self._logprobs = []
        self._index += len(self._ids)
        self._ids, self._text = [], []
        self._due = self._end is not None
        return message

    def _whole_answer(self, finished: router_pb2.Finished) -> router_pb2.Finished:
        finished.text = "".join(self._text)
        finished.token_ids.extend(self._ids)
        finished.logprobs.extend(self._logprobs)
        return finished
