"""One request in this worker: its output, what its router was told of it, and how it ended."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Protocol

from headrace.v1 import session_pb2, types_pb2

from services.worker.scheduler.events import TokenLogprobs
from services.worker.session.home import Home

IDS_A_MESSAGE = 2048
POSITIONS_A_MESSAGE = 96  # with log-probabilities of up to 20 candidates: about 26 KiB
LOGPROBS_KEPT = 512  # positions that the router has, for one that goes on in its place
_MOST_MS = 10**12  # 30 years
_BARE_BYTES = 32  # of an update without ids, at most
_ID_BYTES = 5


class Updates(Protocol):
    """Where updates are added: `updates` of a frame."""

    def add(self) -> session_pb2.SequenceUpdate:
        """One more."""


class Job:
    """A request from its Submit to the acknowledgement of its terminal event.

    Output indices run from that of the first id here:  first ≤ sent ≤ made. Ids stay as long as the job, at
    four bytes each; log-probabilities until the router has them, and some longer where it may be claimed.
    """

    __slots__ = (
        "_first",
        "_first_logprob",
        "_logprobs",
        "attempt",
        "claim_key",
        "described",
        "end",
        "end_sent",
        "handle",
        "holder",
        "home",
        "ids",
        "made",
        "request_id",
        "returned",
        "sent",
        "slot",
        "waited_s",
    )

    def __init__(self, handle: int, submit: session_pb2.Submit) -> None:
        self.handle = handle
        self.request_id = submit.request_id
        self.claim_key = submit.claim_key
        self.attempt = submit.attempt
        self.slot = submit.slot
        self.waited_s = waited_s(submit)
        self.home: Home | None = None  # where news of it go; a job of a broken session has none
        self.made = self.sent = self._first = self._first_logprob = submit.next_index
        self.ids = array("I")
        self.described = False  # whether its tokens have log-probabilities: all or none
        self.end: session_pb2.SequenceEnd | None = None
        self.end_sent = False
        self.returned = False  # given back: it runs elsewhere, nothing of it is wanted here
        self.holder: dict[int, Job] | None = None  # where it waits for the router of a broken session
        self._logprobs: list[types_pb2.PositionLogprobs] = []

    @property
    def has_news(self) -> bool:
        """Whether there is something to send."""
        return self.sent < self.made or (self.end is not None and not self.end_sent)

    @property
    def is_plain(self) -> bool:
        """Whether its next id is all that there will be to send."""
        return self.sent == self.made and self.end is None and not self.described

    def goes_on_after(self, delivered_ids: Iterable[int]) -> None:
        """Its client has this output, from index 0 on: whoever claims it wants that, too."""
        if self.claim_key:
            self.ids.extend(delivered_ids)
            self._first = self.made - len(self.ids)

    def append(self, index: int, token: int) -> None:
        """Takes the next output token; the engine leaves no gaps."""
        assert index == self.made, "the engine skipped an output token"
        self.ids.append(token)
        self.made = index + 1

    def extend(self, ids: bytes) -> None:
        """Takes the next output tokens, of four bytes each."""
        self.ids.frombytes(ids)
        self.made += len(ids) // self.ids.itemsize

    def describe(self, logprobs: TokenLogprobs) -> None:
        """Takes the log-probabilities of the next token without."""
        self.described = True
        self._logprobs.append(_position(logprobs))

    def tell(self, updates: Updates) -> int:
        """Adds the next part of the news, of bounded size, counted as sent; the end goes with the last ids.

        Returns how many bytes that takes at most.
        """
        start = self.sent - self._first
        ids = self.ids[start : start + (POSITIONS_A_MESSAGE if self.described else IDS_A_MESSAGE)]
        update = updates.add()
        update.slot, update.attempt, update.first_index = self.slot, self.attempt, self.sent
        update.token_ids.extend(ids)
        if self.described:
            first = self.sent - self._first_logprob
            update.logprobs.extend(self._logprobs[first : first + len(ids)])
        self.sent += len(ids)
        if self.end is not None and self.sent == self.made:
            update.end.CopyFrom(self.end)
            self.end_sent = True
        elif not self.described:
            return _BARE_BYTES + _ID_BYTES * len(ids)
        return _BARE_BYTES + update.ByteSize()

    def acknowledged(self, index: int) -> None:
        """The router has all log-probabilities before `index`: it will not want them again."""
        surplus = index - self._first_logprob - (LOGPROBS_KEPT if self.claim_key else 0)
        if surplus > 0:
            del self._logprobs[:surplus]
            self._first_logprob += surplus

    def resume(self, slot: int, next_index: int) -> bool:
        """Goes on in a new session from `next_index`; False when that output is not here."""
        first = max(self._first, self._first_logprob) if self.described else self._first
        if not first <= next_index <= self.made:
            return False
        self.slot, self.sent, self.end_sent = slot, next_index, False
        return True

    def adopt(self, slot: int, attempt: int, next_index: int) -> bool:
        """Goes on in another session, as a later attempt; False where it cannot from that index."""
        if self.returned or attempt <= self.attempt or not self.resume(slot, next_index):
            return False
        self.attempt = attempt
        return True

    def logprobs_from(self, index: int) -> tuple[int, list[types_pb2.PositionLogprobs]]:
        """Log-probabilities from `index` on, or from the first that is still here; and that index."""
        skipped = max(0, index - self._first_logprob)
        return self._first_logprob + skipped, self._logprobs[skipped:]


def _position(logprobs: TokenLogprobs) -> types_pb2.PositionLogprobs:
    pairs = zip(logprobs.top_ids, logprobs.top, strict=True)
    top = [types_pb2.TokenLogprob(token_id=token, logprob=value) for token, value in pairs]
    return types_pb2.PositionLogprobs(chosen=logprobs.chosen, top=top)


def waited_s(submit: session_pb2.Submit) -> float:
    """How long it had waited before it came; absurd times of a router are cut."""
    return min(submit.waited_ms, _MOST_MS) / 1000
