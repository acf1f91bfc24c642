"""What one session tells of its worker's KV cache, put in order and taken into the index.

Events are numbered. A gap means that something is not known: the whole content is asked for, and events wait
until its pieces are there. Nonsense is counted and costs only the worker that sends it: after a few failed
attempts its blocks are no longer listened to, and it counts as one that keeps nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from enum import IntEnum
from math import inf
from typing import NamedTuple

import numpy as np

from services.router.policy.prefix_index import PrefixIndex
from services.router.policy.ticket import Digests

NAME_BYTES = 16
ASK_AGAIN_S = 5.0
MOST_FAILURES = 5
EVENTS_QUEUED = 1 << 16
"""Most that wait for a snapshot."""


class Change(IntEnum):
    """What happened to a block; a truth value says it as well."""

    REMOVED = 0
    STORED = 1
    CLEARED = 2


class _Batch(NamedTuple):
    first_number: int
    changes: Sequence[int]
    digests: Sequence[bytes]


class KvFeed:
    """One worker's events, from the session's beginning to its end. The worker has joined the index."""

    def __init__(self, key: str, blocks: int, index: PrefixIndex) -> None:
        self.key = key
        self.faults: Counter[str] = Counter()
        """Gaps, duplicates and nonsense by kind."""
        self._index = index
        self._blocks = blocks
        self._next: int | None = None
        """None: out of step, until a snapshot is complete."""
        self._queue: deque[_Batch] = deque()
        self._queued = 0
        self._snapshot_next: int | None = None
        self._pieces = 0
        self._asked_s = -inf
        self._failures = 0
        index.cleared(key)

    @property
    def in_step(self) -> bool:
        """Whether the index says what the worker keeps."""
        return self._next is not None

    @property
    def queued(self) -> int:
        """Events that wait for a snapshot."""
        return self._queued

    @property
    def deaf(self) -> bool:
        """Whether the worker sent so much nonsense that its blocks are not listened to any more."""
        return self._failures >= MOST_FAILURES

    def snapshot_wanted(self, now: float) -> bool:
        """Whether to ask for the whole content now: once per need, and again while there is no answer."""
        if self.in_step or self.deaf or 0 <= now - self._asked_s < ASK_AGAIN_S:
            return False
        self._asked_s = now
        return True

    def events(self, first_number: int, changes: Sequence[int], digests: Sequence[bytes]) -> None:
        """Takes a frame's events. `changes`: of `Change`; a CLEARED has an empty digest."""
        if self.deaf or not changes:
            return
        if len(changes) != len(digests) or not _well_formed(changes, digests):
            self._lost("malformed")
            return
        batch = _Batch(first_number, changes, digests)
        if self._next is None:
            self._keep(batch)
        else:
            self._take(batch)

    def snapshot(self, next_event_number: int, digests: bytes, *, last: bool, now: float) -> None:
        """Takes a piece of the whole content."""
        if self.deaf:
            return
        if len(digests) % NAME_BYTES:
            self._failed("malformed")
            return
        if next_event_number != self._snapshot_next:
            self._begin(next_event_number)
        self._asked_s = now
        self._piece(digests)
        if last and self._snapshot_next is not None:
            self._complete()

    def _begin(self, next_event_number: int) -> None:
        """A first piece, of a later snapshot perhaps: the worker was asked again and has begun anew.

        Events that wait are kept: their numbers tell whether the snapshot has them.
        """
        self._index.cleared(self.key)
        self._snapshot_next, self._next, self._pieces = next_event_number, None, 0

    def _piece(self, digests: bytes) -> None:
        names = np.frombuffer(digests, "<u8").reshape(-1, 2)
        self._pieces += len(names)
        if self._pieces > self._blocks or self._index.stored(self.key, names):
            self._failed("more_than_its_blocks")

    def _complete(self) -> None:
        self._next, self._snapshot_next = self._snapshot_next, None
        waiting, self._queue, self._queued = self._queue, deque(), 0
        for batch in waiting:
            if self._next is None:
                self._keep(batch)
            else:
                self._take(batch)

    def _keep(self, batch: _Batch) -> None:
        """Lets events wait for the snapshot."""
        self._queued += len(batch.changes)
        self._queue.append(batch)
        while self._queued > EVENTS_QUEUED:
            self._queued -= len(self._queue.popleft().changes)

    def _take(self, batch: _Batch) -> None:
        assert self._next is not None
        known = self._next - batch.first_number
        if known < 0:
            self.faults["gap"] += 1
            self._out_of_step()
            self._keep(batch)
        elif known >= len(batch.changes):
            self.faults["duplicate"] += 1
        else:
            self._next = batch.first_number + len(batch.changes)
            self._apply(batch.changes[known:], batch.digests[known:])

    def _apply(self, changes: Sequence[int], digests: Sequence[bytes]) -> None:
        """Runs of one kind at a time: order matters only between kinds."""
        start = 0
        for end in range(1, len(changes) + 1):
            if end == len(changes) or changes[end] != changes[start]:
                if self._run(changes[start], digests[start:end]):
                    self._lost("more_than_its_blocks")
                    return
                start = end

    def _run(self, change: int, digests: Sequence[bytes]) -> int:
        if change == Change.CLEARED:
            self._index.cleared(self.key)
            return 0
        if change == Change.REMOVED:
            self._index.removed(self.key, _names(digests))
            return 0
        return self._index.stored(self.key, _names(digests))

    def _lost(self, fault: str) -> None:
        """What the worker said cannot be; its whole content may put it right."""
        self._failures += 1
        self.faults[fault] += 1
        self._out_of_step()
        if self.deaf:
            self._index.cleared(self.key)

    def _failed(self, fault: str) -> None:
        """A snapshot cannot be used."""
        self._lost(fault)
        self._index.cleared(self.key)

    def _out_of_step(self) -> None:
        self._next = self._snapshot_next = None
        self._queue.clear()
        self._queued = 0
        self._asked_s = -inf


def _names(digests: Sequence[bytes]) -> Digests:
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def _well_formed(changes: Sequence[int], digests: Sequence[bytes]) -> bool:
    return all(
        len(digest) == (0 if change == Change.CLEARED else NAME_BYTES) and 0 <= change <= 2
        for change, digest in zip(changes, digests, strict=True)
    )
