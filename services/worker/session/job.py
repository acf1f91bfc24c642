"""One request in this worker: its output as far as the router may still want it, and how it ended."""

from __future__ import annotations

from headrace.v1 import session_pb2, types_pb2

from services.worker.scheduler.events import SequenceNews, TokenLogprobs

IDS_A_MESSAGE = 2048
POSITIONS_A_MESSAGE = 96  # with log-probabilities of up to 20 candidates: about 26 KiB


class Job:
    """A request from its Submit to the acknowledgement of its terminal event.

    Output indices run from `next_index` of the Submit:  base ≤ acknowledged ≤ sent ≤ made.
    """

    def __init__(self, handle: int, submit: session_pb2.Submit) -> None:
        self.handle = handle
        self.request_id = submit.request_id
        self.attempt = submit.attempt
        self.slot = submit.slot
        self.sent = submit.next_index
        self.end: session_pb2.SequenceEnd | None = None
        self.end_sent = False
        self.returned = False  # given back: it runs elsewhere, nothing of it is wanted here
        self._base = submit.next_index
        self._ids: list[int] = []
        self._logprobs: list[types_pb2.PositionLogprobs] = []

    @property
    def made(self) -> int:
        """Index of the next output token that the engine will make."""
        return self._base + len(self._ids)

    @property
    def base(self) -> int:
        """Index of the first output token that is still here."""
        return self._base

    @property
    def has_news(self) -> bool:
        """Whether there is something to send."""
        return self.sent < self.made or (self.end is not None and not self.end_sent)

    def append(self, news: SequenceNews) -> None:
        """Takes new output of the engine, which leaves no gaps."""
        assert news.first_index == self.made, "the engine skipped an output token"
        self._ids.extend(news.tokens.tolist())
        if news.logprobs is not None:
            self._logprobs.extend(map(_position, news.logprobs))

    def message(self) -> session_pb2.SequenceUpdate:
        """The next part of the news, of bounded size, counted as sent; the end goes with the last ids."""
        start = self.sent - self._base
        stop = start + (POSITIONS_A_MESSAGE if self._logprobs else IDS_A_MESSAGE)
        update = session_pb2.SequenceUpdate(
            slot=self.slot,
            attempt=self.attempt,
            first_index=self.sent,
            token_ids=self._ids[start:stop],
            logprobs=self._logprobs[start:stop],
        )
        self.sent += len(update.token_ids)
        if self.end is not None and self.sent == self.made:
            update.end.CopyFrom(self.end)
            self.end_sent = True
        return update

    def acknowledged(self, index: int) -> None:
        """The router has all output before `index`: it will never be wanted again."""
        count = index - self._base
        if count > 0:
            del self._ids[:count]
            del self._logprobs[:count]
            self._base = index

    def resume(self, slot: int, next_index: int) -> bool:
        """Goes on in a new session from `next_index`; False when that output is not here."""
        if not self._base <= next_index <= self.made:
            return False
        self.slot, self.sent, self.end_sent = slot, next_index, False
        return True


def _position(logprobs: TokenLogprobs) -> types_pb2.PositionLogprobs:
    pairs = zip(logprobs.top_ids, logprobs.top, strict=True)
    top = [types_pb2.TokenLogprob(token_id=token, logprob=value) for token, value in pairs]
    return types_pb2.PositionLogprobs(chosen=logprobs.chosen, top=top)
