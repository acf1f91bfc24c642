"""The order in which requests of one model wait: by class, with aging so that nothing starves.

A request is overdue once it has waited its class's aging time. Overdue requests of all classes go first, the
longest overdue before the others; then the classes in order of urgency.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from heapq import merge
from math import inf
from typing import NamedTuple

from services.router.policy.classify import LatencyClass
from services.router.policy.ticket import Ticket

_DEADLINE_SHARE = 0.25


class _Place(NamedTuple):
    overdue_s: float
    number: int


class Line:
    """The waiting requests of one model."""

    def __init__(self, aging_s: Mapping[LatencyClass, float]) -> None:
        self._aging_s = aging_s
        self._places: dict[LatencyClass, list[_Place]] = {each: [] for each in LatencyClass}
        self.tickets: dict[int, Ticket] = {}
        self.prefill_tokens = 0

    def __len__(self) -> int:
        return len(self.tickets)

    def add(self, ticket: Ticket) -> None:
        """Puts a request where its arrival belongs."""
        insort(self._places[ticket.latency_class], self._place(ticket))
        self.tickets[ticket.number] = ticket
        self.prefill_tokens += ticket.cost.prefill_tokens

    def remove(self, number: int) -> Ticket | None:
        """Takes a request out; None when it does not wait here."""
        ticket = self.tickets.pop(number, None)
        if ticket is not None:
            places = self._places[ticket.latency_class]
            del places[bisect_left(places, self._place(ticket))]
            self.prefill_tokens -= ticket.cost.prefill_tokens
        return ticket

    def in_order(self, now: float) -> Iterator[Ticket]:
        """The requests, the next to go first."""
        border = _Place(now, 1 << 62)
        overdue = {each: bisect_right(places, border) for each, places in self._places.items()}
        for place in merge(*(self._places[each][: overdue[each]] for each in LatencyClass)):
            yield self.tickets[place.number]
        for each in LatencyClass:
            for place in self._places[each][overdue[each] :]:
                yield self.tickets[place.number]

    def _place(self, ticket: Ticket) -> _Place:
        wait_s = self._aging_s[ticket.latency_class]
        if ticket.latency_class is LatencyClass.BATCH:
            wait_s = max(wait_s, _DEADLINE_SHARE * _time_allowed(ticket))
        return _Place(ticket.arrival_s + wait_s, ticket.number)


def _time_allowed(ticket: Ticket) -> float:
    if ticket.deadline_s is None or ticket.deadline_s == inf:
        return 0.0
    return ticket.deadline_s - ticket.arrival_s
