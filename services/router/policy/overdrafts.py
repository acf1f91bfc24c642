"""Requests that starve for blocks go where there are too few of them: the worker is emptied for them."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import NamedTuple

from services.router.policy.fleet import Fleet
from services.router.policy.placement import Choice, Placement
from services.router.policy.queue.order import Entry
from services.router.policy.settings import PolicySettings
from services.router.policy.spread import Hits
from services.router.policy.ticket import Ticket

_CLEARING_S = 120.0
"""Long enough for running answers to end."""
_SOME_BLOCKS = 1


class _Overdraft(NamedTuple):
    """A request that was given to a worker which has not the blocks for it yet."""

    number: int
    since_s: float


class Overdrafts:
    """Which request may overdraw a worker's credit, and when: one at a time."""

    def __init__(self, settings: PolicySettings, fleet: Fleet, placement: Placement) -> None:
        self._settings = settings
        self._fleet = fleet
        self._placement = placement
        self._open: _Overdraft | None = None
        self._next_from_s = -inf

    def due(self, entry: Entry, now: float) -> bool:
        """Whether a request has found no room for so long that it may go where there is too little.

        One at a time, and half of the time at most: what is emptied for it serves nobody else meanwhile.
        """
        overdraft = self._open
        if overdraft is not None and abs(now - overdraft.since_s) < _CLEARING_S:
            return False
        if not self._settings.clear_for_starving or 0 < self._next_from_s - now <= _CLEARING_S:
            return False
        late = now - entry.ticket.arrival_s >= 2 * self._starving_s(entry)
        return late and self._lacks_blocks(entry.ticket)

    def choose(self, ticket: Ticket, hits: Hits, now: float) -> Choice:
        """A worker with credit for something: it lets nobody pass the request, whichever router asks.

        A router cannot empty a worker by itself: others fill it, and no share of its credit is ever enough.
        """
        little = replace(ticket, cost=ticket.cost._replace(kv_blocks=_SOME_BLOCKS))
        choice = self._placement.choose(little, self._fleet, hits, now)
        if choice.worker is not None:
            self._open = _Overdraft(ticket.number, now)
        return choice

    def settled(self, number: int, now: float | None) -> None:
        """An overdraft is made good: its request began, at a time, or has left."""
        overdraft = self._open
        if overdraft is not None and overdraft.number == number:
            self._open = None
            if now is not None:
                self._next_from_s = now + min(max(0.0, now - overdraft.since_s), _CLEARING_S)

    def _lacks_blocks(self, ticket: Ticket) -> bool:
        """Whether some worker takes work, and has too few blocks for this."""
        fleet, cost = self._fleet, ticket.cost
        some = fleet.affordable(cost._replace(kv_blocks=_SOME_BLOCKS), ticket.foreground)
        return bool((some & ~fleet.affordable(cost, ticket.foreground)).any())

    def _starving_s(self, entry: Entry) -> float:
        """Its wait until it is overdue; where its class never is, that of the first class that is."""
        if entry.overdue_s < inf:
            return entry.overdue_s - entry.ticket.arrival_s
        return min((each.aging_s for each in self._settings.classes.values() if each.aging_s), default=inf)
