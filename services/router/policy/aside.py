"""Requests that no worker is there for stand aside in their queue.

While others have one they are in nobody's way, and they are in their places again as soon as a worker comes
that could run them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from services.router.policy.columns import some
from services.router.policy.fleet import Fleet
from services.router.policy.queue import ModelQueue
from services.router.policy.ticket import Ticket
from services.router.policy.worker import WorkerView

SURVEYED = 4096
"""Requests that one survey looks at."""
_Kind = tuple[frozenset[tuple[str, str]], frozenset[str], frozenset[str]]


class Surveyed(NamedTuple):
    """A request that waits, and whether no worker is there for it."""

    ticket: Ticket
    alone: bool


class Aside:
    """Who of a queue stands aside, by the workers of a fleet."""

    def __init__(self, fleet: Fleet, queue: ModelQueue) -> None:
        self._fleet = fleet
        self._queue = queue
        self._surveyed = 0

    def survey(self) -> Iterator[Surveyed]:
        """Which of the requests no worker is there for; while others have one, these are in nobody's way.

        Of very many that wait so many at a time, in turns: nothing else goes on meanwhile.
        """
        longest: dict[_Kind, float] = {}
        there = some(self._fleet.ready)
        entries = list(islice(self._queue.entries(), self._surveyed, self._surveyed + SURVEYED))
        self._surveyed = self._surveyed + SURVEYED if len(entries) == SURVEYED else 0
        for entry in entries:
            alone = not self._has_taker(entry.ticket, longest)
            self._queue.put_aside(entry, there and alone)
            yield Surveyed(entry.ticket, alone)

    def nobody_for(self, ticket: Ticket) -> bool:
        """Whether workers are there, but none for this request."""
        ready, suited = self._fleet.ready, self._fleet.suited(ticket)
        return suited is not ready and some(ready) and not some(suited)

    def bring_back(self) -> None:
        """Requests that stood aside are in their places again where a worker is there for them now."""
        longest: dict[_Kind, float] = {}
        if any(each.requests for each in self._queue.aside.values()):
            for entry in self._queue.entries():
                if entry.aside and self._has_taker(entry.ticket, longest):
                    self._queue.put_aside(entry, False)

    def _has_taker(self, ticket: Ticket, longest: dict[_Kind, float]) -> bool:
        """Whether a worker is there for it; `longest`: tokens that some worker takes, by kind, as found."""
        kind = (ticket.labels, ticket.capabilities, ticket.barred)
        most = longest.get(kind)
        if most is None:
            suited = self._fleet.suited(replace(ticket, total_tokens=0))
            most = longest[kind] = float(self._fleet.max_tokens[suited].max(initial=-1.0))
        return ticket.total_tokens <= most


def may_suit_others(earlier: WorkerView, view: WorkerView) -> bool:
    """Whether a worker could now run other requests than before."""
    return _kind(earlier) != _kind(view)


def _kind(view: WorkerView) -> tuple[object, ...]:
    """What decides which requests it could run."""
    return view.ready, view.labels, view.capabilities, view.max_tokens
