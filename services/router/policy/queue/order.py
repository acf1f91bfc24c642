"""The order of one tenant's requests in one lane.

Earliest effective deadline first: arrival + target - predicted prefill, so that a long prompt starts sooner.
A request that can no longer meet its target gives way to those that can (relegated: shortest work first),
and is back in its place once it has waited `restore_after` targets. So lateness is not infectious, and never
for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from math import inf

import numpy as np
import numpy.typing as npt

from services.router.policy.queue.ranked import Ranked
from services.router.policy.ticket import Ticket

_MOVES = 64
"""Requests that one look relegates or restores at most: a jump of the clock must not stop the router."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the queue. Times in seconds."""

    ticket: Ticket
    prefill_s: float
    cost_s: float
    """GPU seconds of all of it."""
    due_s: float
    """Effective deadline: when it should start at the latest."""
    overdue_s: float
    """When it gets a place among the overdue ones."""
    restore_s: float | None = None
    """When a relegated request gets its place back; None: it is never relegated."""
    lane: int = 0
    relegated: bool = False
    queued_s: float = 0.0
    """When it was queued, this time."""
    raw_wait_s: float = 0.0
    """Its wait as predicted then, before the correction."""
    hold_until_s: float = -inf
    """It waits for one of its warm workers until then."""
    warm: npt.NDArray[np.bool_] | None = None
    """These. [positions]"""


class TenantOrder:
    """One tenant's requests in one lane."""

    __slots__ = ("_due", "_entries", "_late", "_restores")

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._due: Ranked[tuple[float, int]] = Ranked()
        self._late: Ranked[tuple[float, int]] = Ranked()
        self._restores: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Puts a request in its place."""
        self._entries[entry.ticket.number] = entry
        entry.relegated = False
        self._due.add((entry.due_s, entry.ticket.number))

    def remove(self, entry: Entry) -> None:
        """Takes a request out."""
        del self._entries[entry.ticket.number]
        self._ranks(entry).remove(self._key(entry))

    def in_order(self, now: float) -> Iterator[Entry]:
        """The requests, the next to go first. Change nothing while walking."""
        self._restore(now)
        self._relegate(now)
        for ranks in (self._due, self._late):
            for _, number in ranks:
                yield self._entries[number]

    def _ranks(self, entry: Entry) -> Ranked[tuple[float, int]]:
        return self._late if entry.relegated else self._due

    def _key(self, entry: Entry) -> tuple[float, int]:
        return (entry.cost_s if entry.relegated else entry.due_s, entry.ticket.number)

    def _relegate(self, now: float) -> None:
        for entry in self._missed(now):
            self._move(entry, relegated=True)
            assert entry.restore_s is not None, "only what can be restored is relegated"
            heappush(self._restores, (entry.restore_s, entry.ticket.number))

    def _missed(self, now: float) -> list[Entry]:
        """Late requests among the first that are not past their restoration already."""
        late = []
        for due_s, number in islice(self._due, _MOVES):
            if due_s >= now:
                break
            entry = self._entries[number]
            if entry.restore_s is not None and now < entry.restore_s:
                late.append(entry)
        return late

    def _restore(self, now: float) -> None:
        for _ in range(_MOVES):
            if not self._restores or self._restores[0][0] > now:
                return
            _, number = heappop(self._restores)
            entry = self._entries.get(number)
            if entry is not None and entry.relegated:
                self._move(entry, relegated=False)

    def _move(self, entry: Entry, *, relegated: bool) -> None:
        self._ranks(entry).remove(self._key(entry))
        entry.relegated = relegated
        self._ranks(entry).add(self._key(entry))
