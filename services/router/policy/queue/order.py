"""The order of one tenant's requests in one lane.

Effective deadline: arrival + target - predicted prefill, so that a long prompt starts in time. Of those that
are in time each has its place a tenth of its class's target and four times its own prefill after it came,
never later than its effective deadline: a moment's work waits behind no long prompt that is not due.
A request that can no longer meet its target gives way to those that can (relegated: shortest work first),
and is back in its place once it has waited `restore_after` targets: then those that are late by so much have
`restored_share` of their tenant's work while others wait, and all that these leave. So lateness is not
infectious, and never for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from math import inf

import numpy as np
import numpy.typing as npt

from services.router.policy.queue.ranked import Ranked
from services.router.policy.ticket import Ticket

_MOVES = 64
"""Requests that one look relegates or restores at most: a jump of the clock must not stop the router."""


class Place(IntEnum):
    """Where a request stands among its tenant's, in this order."""

    OLD = 0
    """Late and past its restoration."""
    DUE = 1
    LATE = 2
    """Relegated."""


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the queue. Times in seconds."""

    ticket: Ticket
    prefill_s: float
    cost_s: float
    """GPU seconds of all of it."""
    due_s: float
    """Effective deadline: when it should start at the latest."""
    soon_s: float
    """When it is wanted to start: its place among those that are in time; never after `due_s`."""
    overdue_s: float
    """When it gets a place among the overdue ones."""
    restore_s: float | None = None
    """When a relegated request gets its place back; None: it is never relegated."""
    lane: int = 0
    """Whose turn it was when it was looked at last; charged when it goes."""
    overdue: bool = False
    """Whether it is also in the lane of overdue requests."""
    aside: bool = False
    """No worker is there for it: it waits, but is in no lane."""
    delayed: bool = False
    """It was aside: its wait says nothing of others'."""
    place: Place = Place.DUE
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

    __slots__ = ("_entries", "_ranks", "_restored_s", "_restored_share", "_restores", "_work_s", "in_time_s")

    def __init__(self, restored_share: float = 1.0) -> None:
        self.in_time_s = 0.0
        """GPU seconds of those that can still meet their targets, as far as the last look shows."""
        self._restored_share = restored_share
        self._restored_s = 0.0  # GPU seconds of what has gone since the first of the restored ones waits
        self._work_s = 0.0  # the same of all requests
        self._entries: dict[int, Entry] = {}
        self._ranks: tuple[Ranked[tuple[float, int]], ...] = (Ranked(), Ranked(), Ranked())
        self._restores: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Puts a request in its place."""
        self._entries[entry.ticket.number] = entry
        self.in_time_s += entry.cost_s
        self._ranks[Place.DUE].add(_key(entry))

    def remove(self, entry: Entry) -> None:
        """Takes a request out."""
        del self._entries[entry.ticket.number]
        self._ranks[entry.place].remove(_key(entry))
        if entry.place is Place.DUE:
            self.in_time_s = max(0.0, self.in_time_s - entry.cost_s)
        if self._ranks[Place.OLD].first is None:
            self._restored_s = self._work_s = 0.0
        else:
            self._restored_s += entry.cost_s if entry.place is Place.OLD else 0.0
            self._work_s += entry.cost_s

    def first(self) -> Entry:
        """The next to go, as far as the last look shows. Raises StopIteration when nothing waits."""
        first = next(rank.first for rank in self._in_turn() if rank.first is not None)
        return self._entries[first[1]]

    def in_order(self, now: float) -> Iterator[Entry]:
        """The requests, the next to go first. Change nothing while walking."""
        self._restore(now)
        self._relegate(now)
        for rank in self._in_turn():
            for _, number in rank:
                yield self._entries[number]

    def _in_turn(self) -> tuple[Ranked[tuple[float, int]], ...]:
        old, due, late = self._ranks
        if self._restored_s <= self._restored_share * self._work_s:
            return self._ranks
        return due, old, late

    def _relegate(self, now: float) -> None:
        due = self._ranks[Place.DUE]
        for _ in range(_MOVES):
            if due.first is None:
                return
            entry = self._entries[due.first[1]]
            if entry.due_s >= now:
                return  # it goes next, so who is late behind it is looked at soon
            if entry.restore_s is None or now >= entry.restore_s:
                self._move(entry, Place.OLD)
            else:
                self._move(entry, Place.LATE)
                heappush(self._restores, (entry.restore_s, entry.ticket.number))

    def _restore(self, now: float) -> None:
        for _ in range(_MOVES):
            if not self._restores or self._restores[0][0] > now:
                return
            entry = self._entries.get(heappop(self._restores)[1])
            if entry is not None and entry.place is Place.LATE:
                self._move(entry, Place.OLD)

    def _move(self, entry: Entry, place: Place) -> None:
        self._ranks[entry.place].remove(_key(entry))
        if entry.place is Place.DUE:
            self.in_time_s = max(0.0, self.in_time_s - entry.cost_s)
        entry.place = place
        self._ranks[place].add(_key(entry))


def _key(entry: Entry) -> tuple[float, int]:
    """What a request is ranked by in its place."""
    if entry.place is Place.DUE:
        return entry.soon_s, entry.ticket.number
    return entry.due_s if entry.place is Place.OLD else entry.cost_s, entry.ticket.number


class OverdueOrder:
    """One tenant's overdue requests, the longest overdue first; they keep their place in their class too."""

    __slots__ = ("_entries", "_rank")

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._rank: Ranked[tuple[float, int]] = Ranked()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Puts a request in its place."""
        self._entries[entry.ticket.number] = entry
        self._rank.add((entry.overdue_s, entry.ticket.number))

    def remove(self, entry: Entry) -> None:
        """Takes a request out."""
        del self._entries[entry.ticket.number]
        self._rank.remove((entry.overdue_s, entry.ticket.number))

    def first(self) -> Entry:
        """The next to go. Raises StopIteration when nothing waits."""
        return next(self.in_order(0.0))

    def in_order(self, now: float) -> Iterator[Entry]:
        """The requests, the next to go first. Change nothing while walking."""
        return (self._entries[number] for _, number in self._rank)
