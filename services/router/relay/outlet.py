"""What waits for one client, and when it goes: the first token at once, later ones by class, merged.

A client message costs far more than a token, so tokens that become ready while a write is under way, or
within the flush window, travel together. A message is begun in the turn that makes it due: nobody is woken.
A client that does not read is bounded here and given up; it holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from headrace.v1 import router_pb2, types_pb2

from services.common.errors import HeadraceError, SlowConsumer
from services.common.replies import Replies

Logprobs = Sequence[types_pb2.PositionLogprobs]


class Flush(NamedTuple):
    """When waiting tokens go: at whichever bound is reached first."""

    delay_s: float
    tokens: int


AT_ONCE = Flush(0.0, 1)
MOST_KEPT = 64
"""Tokens that a worker keeps at most; who waits for more waits for the rest here."""
WHOLE = Flush(0.2, MOST_KEPT)
"""Of what nobody reads before the end: so much is lost at most where its worker dies."""


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

    What waits goes ahead of the end; ahead of an error only where no message is under way: who does not read
    may not keep that from ending.

    With `whole` there are no Delta messages: Finished carries all. With `keep` all output stays in `kept`.
    """

    def __init__(self, flush: Flush, patience: Patience, *, whole: bool = False, keep: bool = False) -> None:
        self.kept = Kept([], [])
        self._keep = keep
        self._most_tokens = 1 if flush.delay_s == 0 else flush.tokens
        self._in_time = False
        self._delay_s = flush.delay_s
        self.merging = WHOLE if whole else Flush(flush.delay_s, self._most_tokens)
        """How much may be made before any of it is wanted here."""
        self.merged = False
        """Whether what comes has waited for that already."""
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
        self._replies: Replies | None = None
        self.held_up = False
        """Whether output that is due waits until the message before it is written."""
        self._end: router_pb2.Finished | HeadraceError | None = None

    @property
    def ended(self) -> bool:
        """Whether the terminal event is decided."""
        return self._end is not None

    def push(self, ids: Sequence[int], text: str, logprobs: Logprobs = (), *, ends: bool = False) -> None:
        """Adds output, unless it has ended. With `ends` the end follows in this turn, and all goes then."""
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
        if not (self._due or self._whole or ends):
            if self.merged or self._index == 0 or len(self._ids) >= self._most_tokens:
                self._make_due()
            elif len(self._ids) == len(ids):
                self._wait_for_more()

    def add(self, token_id: int, text: str, step: int) -> None:
        """The same for one id without log-probabilities that a step of its worker made: nearly all output.

        Streams that send so many tokens a message send them after the same steps: once in its life each sends
        fewer, to be in time with the others. Messages that are written together cost far less.
        """
        if self._end is not None:
            return
        self._ids.append(token_id)
        if text:
            self._text.append(text)
        if self._keep:
            self.kept.text.append(text)
        if not (self._due or self._whole):
            waiting = len(self._ids)
            if self.merged or waiting >= self._most_tokens or self._index == 0:
                self._make_due()
            elif not self._in_time and step % self._most_tokens == 0:
                self._in_time = True
                self._make_due()
            elif waiting == 1:
                self._wait_for_more()

    def finish(self, finished: router_pb2.Finished) -> None:
        """Ends the stream well. Only the first end counts."""
        self._conclude(finished)

    def fail(self, error: HeadraceError) -> None:
        """Ends the stream with an error. Only the first end counts."""
        self._conclude(error)

    def too_slow(self, now: float) -> SlowConsumer | None:
        """The error for a client that has not read for too long or has too much waiting."""
        since = self._replies.since if self._ids and self._replies is not None else None
        if since is None:
            return None
        if len(self._ids) <= self._patience.unsent_tokens and now - since <= self._patience.stall_s:
            return None
        return SlowConsumer(f"{len(self._ids)} tokens wait for a client that does not read")

    async def flow(self, replies: Replies) -> router_pb2.Finished:
        """Begins all Delta messages as they become due; returns Finished when they are written.

        Raises:
            HeadraceError: the stream failed. Exception: what a write failed with.
        """
        self._replies = replies
        try:
            self._go_on()
            while not self._all_said(replies):
                await replies.wait()
        finally:
            self._replies = None
        return self._ended_well()

    async def whole(self) -> router_pb2.Finished:
        """All output at once. Raises HeadraceError: the stream failed."""
        while self._end is None:
            self._reader = self._loop.create_future()
            await self._reader
        return self._ended_well()

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
        self._go_on()

    def _conclude(self, end: router_pb2.Finished | HeadraceError) -> None:
        if self._end is None:
            self._end = end
            if self._timer is not None:
                self._timer.cancel()
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
            self._go_on()

    def _go_on(self) -> None:
        """Begins what is due; behind a message that is under way when that is written."""
        replies = self._replies
        if replies is None:
            return
        if isinstance(self._end, HeadraceError):
            if self._has_more and not replies.busy:
                replies.begin(self._delta())
            replies.wake()
        elif replies.busy:
            self._hold_up(replies)
        elif self._has_more and (self._due or self._end is not None):
            replies.begin(self._delta())
            if self._end is not None:
                self._go_on()
        elif self._end is not None:
            replies.wake()

    def _all_said(self, replies: Replies) -> bool:
        """Whether nothing is left to be done before the end."""
        if isinstance(self._end, HeadraceError):
            return True
        return self._end is not None and not (self._has_more or replies.busy)

    def _hold_up(self, replies: Replies) -> None:
        if not self.held_up:
            self.held_up = True
            replies.when_free(self._free)

    def _free(self) -> None:
        self.held_up = False
        self._go_on()

    @property
    def _has_more(self) -> bool:
        """Whether there is output for another Delta."""
        return bool(self._ids or self._text) and not self._whole

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
        self._due = False
        return message

    def _ended_well(self) -> router_pb2.Finished:
        assert self._end is not None, "for who knows that it has ended"
        if isinstance(self._end, HeadraceError):
            raise self._end
        if self._whole:
            self._end.text = "".join(self._text)
            self._end.token_ids.extend(self._ids)
            self._end.logprobs.extend(self._logprobs)
        return self._end
