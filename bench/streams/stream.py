"""One stream, compared with the undisturbed answer as it arrives, and what was seen of all of them."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from headrace.errors import from_rpc
from headrace.v1 import router_pb2

from bench.streams.asked import Asked

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

TIMEOUT_S = 600.0


@dataclass
class Gaps:
    """Times between messages of one stream: when each began and ended, in seconds of the monotonic clock."""

    begun_s: array[float] = field(default_factory=lambda: array("d"))
    ended_s: array[float] = field(default_factory=lambda: array("d"))

    def add(self, begun_s: float, ended_s: float) -> None:
        """One of them."""
        self.begun_s.append(begun_s)
        self.ended_s.append(ended_s)

    def between(self, from_s: float, to_s: float) -> list[float]:
        """The lengths of those that overlap this time, the shortest first."""
        pairs = zip(self.begun_s, self.ended_s, strict=True)
        return sorted(end - begin for begin, end in pairs if begin <= to_s and end >= from_s)

    def ended_between(self, from_s: float, to_s: float) -> list[float]:
        """The lengths of those that ended in this time, the shortest first."""
        pairs = zip(self.begun_s, self.ended_s, strict=True)
        return sorted(end - begin for begin, end in pairs if from_s <= end < to_s)


@dataclass
class Tally:
    """Every stream counts once in `begun`, and once in `whole`, `left` or `failed`."""

    begun: int = 0
    whole: int = 0
    left: int = 0  # by their client, on purpose
    failed: Counter[str] = field(default_factory=Counter)  # by reason
    doubled: int = 0
    missing: int = 0
    wrong: int = 0  # other than undisturbed
    wrong_texts: int = 0
    tokens: int = 0
    messages: int = 0
    first: int = 0  # streams that had a token
    moves: int = 0  # attempts beyond the first, of whole streams
    by_worker: Counter[str] = field(default_factory=Counter)  # whole streams, by who ended them
    gaps: Gaps = field(default_factory=Gaps)

    @property
    def lost(self) -> int:
        """Streams that their client did not get."""
        return self.begun - self.whole - self.left

    @property
    def faults(self) -> int:
        """Everything that should not have been."""
        return self.lost + self.doubled + self.missing + self.wrong + self.wrong_texts


class Stream:
    """What one client has."""

    def __init__(self, asked: Asked, tally: Tally) -> None:
        self.had = 0
        self._asked = asked
        self._tally = tally
        self._text: list[str] = []
        self._last_s = 0.0

    def take(self, delta: router_pb2.Delta, now_s: float) -> None:
        """The next message with output."""
        tally, ids = self._tally, list(delta.token_ids)
        self._text.append(delta.text)
        tally.messages += 1
        if not ids:
            return
        if delta.index != self.had:
            tally.doubled += max(0, self.had - delta.index)
            tally.missing += max(0, delta.index - self.had)
        expected = self._asked.ids[delta.index : delta.index + len(ids)]
        if ids != expected:
            pairs = zip(ids, expected, strict=False)
            tally.wrong += abs(len(ids) - len(expected)) + sum(mine != theirs for mine, theirs in pairs)
        if self.had:
            tally.gaps.add(self._last_s, now_s)
        else:
            tally.first += 1
        self._last_s = now_s
        self.had = delta.index + len(ids)
        tally.tokens += len(ids)

    def finish(self, finished: router_pb2.Finished) -> None:
        """The end."""
        tally = self._tally
        tally.whole += 1
        tally.missing += max(0, len(self._asked.ids) - self.had)
        tally.wrong_texts += "".join(self._text) != self._asked.text
        tally.moves += max(0, finished.attempts - 1)
        tally.by_worker[finished.worker_id] += 1


async def read(
    stub: RouterServiceAsyncStub, asked: Asked, tally: Tally, *, leave_at: int | None = None
) -> None:
    """One stream to its end, or until its client leaves with so many tokens. Failures are counted."""
    tally.begun += 1
    stream = Stream(asked, tally)
    call = stub.Generate(asked.request, timeout=TIMEOUT_S)
    try:
        async for reply in call:
            if reply.HasField("finished"):
                stream.finish(reply.finished)
                return
            stream.take(reply.delta, time.monotonic())
            if leave_at is not None and stream.had >= leave_at:
                tally.left += 1
                return
        tally.failed["NO_FINISHED"] += 1
    except grpc.aio.AioRpcError as error:
        known = from_rpc(error)
        tally.failed[known.reason or known.code.name] += 1
    finally:
        call.cancel()
