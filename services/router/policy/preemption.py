"""Which batch request gives way to an interactive one that nothing can take. Nothing is lost by it.

Before its first token a request goes back to its place in the queue; after it, it is paused: its output is
kept, and it goes on by the ordinary way of resuming. Each request gives way a bounded number of times and has
a least time on its worker, so that batch work always gets on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from services.router.policy.classify import LatencyClass
from services.router.policy.settings import PolicySettings
from services.router.policy.ticket import Cost, Ticket
from services.router.policy.worker import WorkerView


@dataclass(slots=True, eq=False)
class Seat:
    """A request on a worker. Times in seconds."""

    ticket: Ticket
    worker: str
    since_s: float
    lane: int
    cost: Cost
    cached_tokens: int
    prefill_s: float
    total_s: float
    """GPU seconds, as charged to its lane."""
    predicted_first_s: float
    """From the dispatch, before the correction."""
    output_tokens: int = 0
    """Made on this seat."""
    leaving: bool = False
    """It was told to give way."""

    @property
    def begun(self) -> bool:
        """Whether its first token is there."""
        return self.output_tokens > 0

    @property
    def spent_tokens(self) -> int:
        """What its work so far would cost again."""
        return self.cost.prefill_tokens + self.output_tokens if self.begun else 0


class Displacement(NamedTuple):
    """A request that is to leave its worker for a more urgent one."""

    number: int
    worker: str
    begun: bool
    """True: pause it, its output is kept. False: it goes back to its place."""


class Yard(NamedTuple):
    """A worker that could run what waits, with the batch requests on it."""

    worker: WorkerView
    seats: Iterable[Seat]


def victims(
    waiting: Ticket, yards: Iterable[Yard], displaced: Mapping[int, int], settings: PolicySettings, now: float
) -> list[Seat]:
    """Who must leave so that the request fits somewhere, the least work lost; empty: it cannot be."""
    plans = [_enough(waiting.cost, yard, displaced, settings, now) for yard in yards]
    return min((plan for plan in plans if plan), key=_loss, default=[])


def _loss(plan: list[Seat]) -> tuple[int, int]:
    return sum(seat.spent_tokens for seat in plan), len(plan)


def _enough(
    need: Cost, yard: Yard, displaced: Mapping[int, int], settings: PolicySettings, now: float
) -> list[Seat]:
    """The seats of one worker that make room, least progress first."""
    if yard.worker.foreground_credit is not None:
        return []  # batch work gives way to it there anyway: there is no room to be made
    credit = yard.worker.credit
    may = [
        seat for seat in yard.seats if may_leave(seat, displaced.get(seat.ticket.number, 0), settings, now)
    ]
    plan: list[Seat] = []
    for seat in sorted(may, key=lambda each: (each.spent_tokens, -each.since_s)):
        plan.append(seat)
        credit = _given_back(credit, seat)
        if credit.sequences >= 1 and credit.prefill_tokens > 0 and credit.kv_blocks >= need.kv_blocks:
            return plan
    return []


def _given_back(credit: Cost, seat: Seat) -> Cost:
    return Cost(
        credit.prefill_tokens + (0 if seat.begun else seat.cost.prefill_tokens),
        credit.sequences + 1,
        credit.kv_blocks + seat.cost.kv_blocks,
    )


def may_leave(seat: Seat, displaced: int, settings: PolicySettings, now: float) -> bool:
    """Whether a seat may be taken from its request."""
    return (
        seat.ticket.latency_class is LatencyClass.BATCH
        and not seat.leaving
        and displaced < settings.displacements
        and now - seat.since_s >= settings.residency_s
    )
