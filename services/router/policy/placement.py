"""Which worker takes a request: the least loaded one that suits it and has credit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.router.policy.ticket import Ticket
from services.router.policy.worker import WorkerView


class _Load(NamedTuple):
    share: float
    waiting_tokens: int
    last_given: int


def choose(ticket: Ticket, workers: Iterable[WorkerView], last_given: dict[str, int]) -> WorkerView | None:
    """The worker to take, or None; ties go to the one that was given something least recently."""
    fitting = [each for each in workers if each.affords(ticket.cost) and each.suits(ticket)]
    return min(fitting, key=lambda each: _load(each, last_given), default=None)


def _load(worker: WorkerView, last_given: dict[str, int]) -> _Load:
    share = worker.sequences / max(worker.max_sequences, 1)
    return _Load(share, worker.waiting_tokens, last_given.get(worker.key, 0))
