"""Who waits, in the order of their places. Adding is O(log n), leaving O(1)."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from services.worker.scheduler.policy import Place
from services.worker.scheduler.sequence import Sequence


class _Entry(NamedTuple):
    place: Place
    number: int  # so that no two entries compare by their sequences
    sequence: Sequence


class WaitingLine:
    """Sequences without a slot: new ones and victims of preemption, which keep their places.

    Those with lengthy prompts stand in a line of their own beside the others.
    """

    def __init__(self) -> None:
        self._members: dict[int, Sequence] = {}  # by handle
        self._heaps: tuple[list[_Entry], list[_Entry]] = ([], [])  # of others, and of the lengthy
        self._entries = 0
        self.uncached_tokens = 0  # sum of the members' backlogs
        self.lengthy_tokens = 0  # the same of those with lengthy prompts
        self.by_session: dict[int, int] = {}  # the same, by session

    def __len__(self) -> int:
        return len(self._members)

    def push(self, sequence: Sequence) -> None:
        """Begin to wait; `sequence.backlog` is set."""
        self._members[sequence.handle] = sequence
        self._enter(sequence)
        self._count(sequence, 1)

    def moved_up(self, sequence: Sequence) -> None:
        """Its place has changed."""
        if self._members.get(sequence.handle) is sequence:
            self._enter(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Wait no longer: admitted, or ended."""
        del self._members[sequence.handle]
        self._count(sequence, -1)

    def head(self, lengthy: bool | None = None) -> Sequence | None:
        """Who is next; stays in line. `lengthy`: of these alone, or of the others; None: of all."""
        heaps = self._heaps if lengthy is None else (self._heaps[lengthy],)
        firsts = [heap[0] for heap in heaps if self._clean(heap)]
        return min(firsts).sequence if firsts else None

    def _clean(self, heap: list[_Entry]) -> bool:
        """Takes out who left, or moved up; whether somebody is left."""
        while heap and not self._is_current(heap[0]):
            heapq.heappop(heap)
        return bool(heap)

    def _is_current(self, entry: _Entry) -> bool:
        sequence = entry.sequence
        return self._members.get(sequence.handle) is sequence and sequence.place == entry.place

    def _enter(self, sequence: Sequence) -> None:
        self._entries += 1
        heapq.heappush(self._heaps[sequence.lengthy], _Entry(sequence.place, self._entries, sequence))

    def _count(self, sequence: Sequence, sign: int) -> None:
        self.uncached_tokens += sign * sequence.backlog
        self.lengthy_tokens += sign * sequence.backlog * sequence.lengthy
        session = sequence.request.session
        waiting = self.by_session.get(session, 0) + sign * sequence.backlog
        if waiting > 0:
            self.by_session[session] = waiting
        else:
            self.by_session.pop(session, None)
