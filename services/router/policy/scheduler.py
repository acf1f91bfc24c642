"""The one object that the dispatcher asks: who waits, who goes next, and where.

The seam of the router's scheduling. Line and placement behind it may change; the dispatcher only submits,
removes, tells of workers, and asks `next` until it answers None. Choice and booking happen in one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from services.router.policy.classify import LatencyClass
from services.router.policy.line import Line
from services.router.policy.placement import choose
from services.router.policy.ticket import Ticket
from services.router.policy.worker import WorkerView

LOOK_AHEAD = 64
"""Requests looked at behind one that no worker can take now."""


class Assignment(NamedTuple):
    """A request and the worker that it was booked on."""

    ticket: Ticket
    worker: str


class Waiting(NamedTuple):
    """What waits for one model."""

    requests: int
    prefill_tokens: int


class Scheduler:
    """Requests in order of class with aging, on the least loaded worker that has credit.

    Args:
        aging_s: how long a request of a class waits before it goes ahead of fresh ones, in seconds.
        patience_s: how long it waits for a worker where none could ever run it, in seconds.
    """

    def __init__(
        self, aging_s: Mapping[LatencyClass, float], patience_s: Mapping[LatencyClass, float]
    ) -> None:
        self._aging_s = aging_s
        self._patience_s = patience_s
        self._lines: dict[str, Line] = {}
        self._workers: dict[str, WorkerView] = {}
        self._alone_since: dict[int, float] = {}
        self._given = 0
        self._last_given: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def submit(self, ticket: Ticket) -> None:
        """Lets a request wait, at the place of its arrival."""
        line = self._lines.setdefault(ticket.model, Line(self._aging_s))
        line.add(ticket)

    def remove(self, number: int) -> Ticket | None:
        """Takes a request out; None when it does not wait."""
        self._alone_since.pop(number, None)
        for model, line in self._lines.items():
            ticket = line.remove(number)
            if ticket is not None:
                if not line:
                    del self._lines[model]
                return ticket
        return None

    def worker_changed(self, worker: WorkerView) -> None:
        """Takes over what a worker reports; also how a new one becomes known."""
        self._workers[worker.key] = worker

    def worker_gone(self, key: str) -> None:
        """Forgets a worker."""
        self._workers.pop(key, None)
        self._last_given.pop(key, None)

    def next(self, now: float) -> Assignment | None:
        """The next request that can go, booked on its worker; None when nothing can."""
        for model, line in self._lines.items():
            workers = [each for each in self._workers.values() if each.model == model and each.open()]
            if not workers:
                continue
            for ticket in islice(line.in_order(now), LOOK_AHEAD):
                worker = choose(ticket, workers, self._last_given)
                if worker is not None:
                    return self._assign(ticket, worker)
        return None

    def waiting(self, model: str) -> Waiting:
        """What waits for a model."""
        line = self._lines.get(model)
        return Waiting(len(line), line.prefill_tokens) if line else Waiting(0, 0)

    def tickets(self) -> Iterator[Ticket]:
        """All requests that wait, in no particular order."""
        for line in self._lines.values():
            yield from line.tickets.values()

    def impatient(self, now: float) -> list[Ticket]:
        """Requests that no known worker could run for longer than their class is patient; they still wait."""
        return [ticket for ticket in self.tickets() if self._out_of_patience(ticket, now)]

    def _out_of_patience(self, ticket: Ticket, now: float) -> bool:
        if any(each.ready and each.suits(ticket) for each in self._workers.values()):
            self._alone_since.pop(ticket.number, None)
            return False
        since = self._alone_since.setdefault(ticket.number, now)
        return now - since >= self._patience_s[ticket.latency_class]

    def _assign(self, ticket: Ticket, worker: WorkerView) -> Assignment:
        self.remove(ticket.number)
        worker.book(ticket.cost)
        self._given += 1
        self._last_given[worker.key] = self._given
        return Assignment(ticket, worker.key)
