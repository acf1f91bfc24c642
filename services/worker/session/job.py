"""One request in this worker: its output as far as the router may still want it, and how it ended."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from headrace.v1 import session_pb2, types_pb2

from services.worker.scheduler.events import TokenLogprobs
from services.worker.session.home import Home

IDS_A_MESSAGE = 2048
POSITIONS_A_MESSAGE = 96  # with log-probabilities of up to 20 candidates: about 26 KiB
LOGPROBS_KEPT = 512  # positions that the router has, for one that goes on in its place
_BARE_BYTES = 32  # of an update without ids, at most
_ID_BYTES = 5


class Updates(Protocol):
    """Where updates are added: `updates` of a frame."""

    def add(self) -> session_pb2.SequenceUpdate:
        """One more."""


class Job:
    """A request from its Submit to the acknowledgement of its terminal event.

    Output indices run from `next_index` of the Submit:  base ≤ acknowledged ≤ sent ≤ made. What is before
    the base is kept packed where another router may claim the request.
    """

    __slots__ = (
        "_base",
        "_ids",
        "_logprobs",
        "_past",
        "_past_logprobs",
        "attempt",
        "claim_key",
        "end",
        "end_sent",
        "handle",
        "holder",
        "home",
        "made",
        "request_id",
        "returned",
        "sent",
        "slot",
    )

    def __init__(self, handle: int, submit: session_pb2.Submit) -> None:
        self.handle = handle
        self.request_id = submit.request_id
        self.claim_key = submit.claim_key
        self.attempt = submit.attempt
        self.slot = submit.slot
        self.home: Home | None = None  # where news of it go; a job of a broken session has none
        self.made = self.sent = self._base = submit.next_index
        self.end: session_pb2.SequenceEnd | None = None
        self.end_sent = False
        self.returned = False  # given back: it runs elsewhere, nothing of it is wanted here
        self.holder: dict[int, Job] | None = None  # where it waits for the router of a broken session
        self._past = array("I")
        self._past_logprobs: deque[types_pb2.PositionLogprobs] = deque(maxlen=LOGPROBS_KEPT)
        self._ids: list[int] = []
        self._logprobs: list[types_pb2.PositionLogprobs] = []

    @property
    def base(self) -> int:
        """Index of the first output token that is still here."""
        return self._base

    @property
    def has_news(self) -> bool:
        """Whether there is something to send."""
        return self.sent < self.made or (self.end is not None and not self.end_sent)

    def goes_on_after(self, delivered_ids: Iterable[int]) -> None:
        """Its client has this output, from index 0 on."""
        if self.claim_key:
            self._past.extend(delivered_ids)

    def append(self, index: int, token: int) -> None:
        """Takes the next output token; the engine leaves no gaps."""
        assert index == self.made, "the engine skipped an output token"
        self._ids.append(token)
        self.made = index + 1

    def describe(self, logprobs: TokenLogprobs) -> None:
        """Takes the log-probabilities of the next token without; they come for all or for none."""
        self._logprobs.append(_position(logprobs))

    def tell(self, updates: Updates) -> int:
        """Adds the next part of the news, of bounded size, counted as sent; the end goes with the last ids.

        Returns how many bytes that takes at most.
        """
        start = self.sent - self._base
        ids = self._ids[start : start + (POSITIONS_A_MESSAGE if self._logprobs else IDS_A_MESSAGE)]
        update = updates.add()  # filled field by field, and one id appended: at a third of other ways' cost
        update.slot, update.attempt, update.first_index = self.slot, self.attempt, self.sent
        if len(ids) == 1:
            update.token_ids.append(ids[0])
        else:
            update.token_ids.extend(ids)
        self.sent += len(ids)
        if self._logprobs:
            update.logprobs.extend(self._logprobs[start : start + len(ids)])
        if self.end is not None and self.sent == self.made:
            update.end.CopyFrom(self.end)
            self.end_sent = True
        elif not self._logprobs:
            return _BARE_BYTES + _ID_BYTES * len(ids)
        return _BARE_BYTES + update.ByteSize()

    def acknowledged(self, index: int) -> None:
        """The router has all output before `index`: it will not want it again."""
        count = index - self._base
        if count > 0:
            if self.claim_key:
                self._past.extend(self._ids[:count])
                self._past_logprobs.extend(self._logprobs[:count])
            del self._ids[:count]
            del self._logprobs[:count]
            self._base = index

    def resume(self, slot: int, next_index: int) -> bool:
        """Goes on in a new session from `next_index`; False when that output is not here."""
        if not self._base <= next_index <= self.made:
            return False
        self.slot, self.sent, self.end_sent = slot, next_index, False
        return True

    def adopt(self, slot: int, attempt: int, next_index: int) -> bool:
        """Goes on in another session, as a later attempt; False where it cannot from that index."""
        back = max(0, self._base - next_index)
        described = len(self._logprobs) + len(self._past_logprobs) > 0
        known = back <= len(self._past) and not (described and back > len(self._past_logprobs))
        if self.returned or attempt <= self.attempt or next_index > self.made or not known:
            return False
        for _ in range(back):
            self._ids.insert(0, self._past.pop())
            if described:
                self._logprobs.insert(0, self._past_logprobs.pop())
        self._base -= back
        self.attempt = attempt
        return self.resume(slot, next_index)

    def output(self) -> array[int]:
        """All output ids, those before this worker's included, where it may be claimed."""
        return self._past + array("I", self._ids)

    def logprobs_from(self, index: int) -> tuple[int, list[types_pb2.PositionLogprobs]]:
        """Log-probabilities from `index` on, or from the first that is still here; and that index."""
        kept = [*self._past_logprobs, *self._logprobs]
        first = self._base - len(self._past_logprobs)
        skipped = max(0, index - first)
        return first + skipped, kept[skipped:]


def _position(logprobs: TokenLogprobs) -> types_pb2.PositionLogprobs:
    pairs = zip(logprobs.top_ids, logprobs.top, strict=True)
    top = [types_pb2.TokenLogprob(token_id=token, logprob=value) for token, value in pairs]
    return types_pb2.PositionLogprobs(chosen=logprobs.chosen, top=top)
