"""Which request goes next, and to which worker: what the queue's order says against what can go now.

head                the request whose turn it is; others go before it only where they delay nothing of it
passed over         found just now that it cannot go: not looked at again before there is news of workers
shut                those that have what it asks for take nothing: it is in nobody's way
held                waits a little for a worker that keeps its prompt and takes nothing now
gone before         a warm request of a tenant that is not too far ahead, before one that would go cold
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from math import inf
from typing import NamedTuple

from services.router.policy.columns import some
from services.router.policy.fleet import Fleet
from services.router.policy.overdrafts import Overdrafts
from services.router.policy.pace import Pace
from services.router.policy.placement import Choice, Placement
from services.router.policy.queue import ModelQueue
from services.router.policy.queue.order import Entry, Place
from services.router.policy.scale import Scale
from services.router.policy.settings import PolicySettings
from services.router.policy.spread import Hits
from services.router.policy.worker import BLOCK_TOKENS

_LOCALITY_TENANTS = 4
"""Tenants looked at for a warm prompt before the one whose turn it is goes cold."""


class Parts(NamedTuple):
    """Of a pool: what is asked."""

    fleet: Fleet
    queue: ModelQueue
    scale: Scale
    placement: Placement
    overdrafts: Overdrafts
    pace: Pace


class Turn:
    """Finds the next request; it changes nothing but what it remembers of those that cannot go."""

    def __init__(self, settings: PolicySettings, parts: Parts, held_back: AbstractSet[str]) -> None:
        """`held_back`: tenants of which nothing goes to a worker now."""
        self._settings = settings
        self._fleet, self._queue, self._scale, self._placement, self._overdrafts, self._pace = parts
        self._held_back = held_back
        self._passed: set[int] = set()
        self._passed_at = float("nan")
        self._shut: dict[tuple[object, ...], bool] = {}

    def news(self) -> None:
        """Workers or their credit changed: who was passed over is looked at again."""
        self._passed.clear()
        self._shut.clear()

    def next(self, now: float) -> tuple[Entry, Choice] | None:
        """The next request that can go, and where; None when nothing can."""
        if now != self._passed_at:
            self.news()
            self._passed_at = now
        head: Entry | None = None
        for entry in self._queue.candidates(now, self._held_back, self._is_shut):
            head = head or entry
            choice = self._choice(entry, head, now)
            if choice is not None and choice.worker is not None:
                return self._local(entry, choice, head, now)
        return None

    def _choice(self, entry: Entry, head: Entry, now: float) -> Choice | None:
        """Where a request can go now; None when it was found just now that it cannot."""
        if entry.ticket.number in self._passed or self._closed(entry) or self._holds(entry, now):
            return None
        if entry.ticket.tenant in self._held_back:
            return None
        head_wait_s = None if entry is head else max(0.0, now - head.ticket.arrival_s)
        if self._pace.target_s is not None and entry.place is not Place.DUE:
            head_wait_s = inf
        hits = self._scale.hits(entry.ticket)
        choice = self._placement.choose(entry.ticket, self._fleet, hits, now, head_wait_s)
        if choice.worker is None and choice.wait_until_s is None and self._overdrafts.due(entry, now):
            choice = self._overdrafts.choose(entry.ticket, hits, now)
        if choice.worker is None:
            self._passed.add(entry.ticket.number)
            self._hold(entry, choice, hits)
        return choice

    def _hold(self, entry: Entry, choice: Choice, hits: Hits) -> None:
        entry.warm = None
        if choice.wait_until_s is not None:
            share = self._settings.placement.warm_share
            warm = hits * BLOCK_TOKENS >= share * entry.ticket.prefill_tokens
            entry.warm = warm if some(warm) else None
            entry.hold_until_s = choice.wait_until_s

    def _closed(self, entry: Entry) -> bool:
        """Whether no worker takes anything of its kind."""
        return not self._fleet.open_workers(entry.ticket.foreground)

    def _is_shut(self, entry: Entry) -> bool:
        """Whether none of the workers that have what it asks for takes anything: it is in nobody's way."""
        ticket = entry.ticket
        if not (ticket.labels or ticket.capabilities):
            return False
        kind = (ticket.labels, ticket.capabilities, ticket.foreground)
        shut = self._shut.get(kind)
        if shut is None:
            open_now = self._fleet.foreground_open if ticket.foreground else self._fleet.open
            able = self._fleet.labelled(ticket.labels, ticket.capabilities)
            shut = self._shut[kind] = not some(able & open_now)
        return shut

    def _holds(self, entry: Entry, now: float) -> bool:
        """Whether it still waits for a closed warm worker."""
        if entry.hold_until_s <= now or entry.warm is None:
            return False
        open_now = self._fleet.foreground_open if entry.ticket.foreground else self._fleet.open
        return len(entry.warm) == len(open_now) and not some(entry.warm & open_now)

    def _local(self, entry: Entry, choice: Choice, head: Entry, now: float) -> tuple[Entry, Choice]:
        """A warm request of a tenant that is not too far ahead goes before a cold one."""
        credit = self._settings.locality_credit_tokens
        if not choice.cold or not credit or self._queue.alone(entry):
            return entry, choice
        for other in self._queue.heads(entry.lane, _LOCALITY_TENANTS):
            if other is not entry and other.ticket.chains and self._queue.gap(other, entry) < credit:
                found = self._choice(other, head, now)
                if found is not None and found.worker is not None and not found.cold:
                    return other, found
        return entry, choice
