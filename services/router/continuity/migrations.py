"""Requests that lost their worker and go on elsewhere: so much at a time, the others wait with their place.

A dead worker's streams have waited longest, so they would go before everything that is new, and each must
compute its prompt and its output again before its next token. At most `a_worker_s` seconds of such prefill
are on their way to each worker that is there: for no longer do they hold up what runs there and what has
just come. Short streams all go at once, long ones a few at a time; foreground before batch, the oldest first.

A request is on its way until its first token there; one that takes longer than PASSING_S counts no more, so
that nothing is held up by what nobody can take. One that is suspected of having killed its worker goes when
no other suspect is on its way: if its next worker dies too, it is known who did it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from services.router.policy import LatencyClass
from services.router.relay.flight import Flight

PASSING_S = 2.0


class Room(NamedTuple):
    """Where requests of one model can go."""

    workers: int
    token_s: float
    """Seconds that a token of a prompt takes one of them."""


class _Passing(NamedTuple):
    flight: Flight
    since_s: float
    prefill_s: float


class Migrations:
    """Moved requests of all models. All methods are synchronous; times in seconds."""

    def __init__(self, a_worker_s: float) -> None:
        self._a_worker_s = a_worker_s
        self._waiting: dict[str, dict[int, Flight]] = {}
        self._passing: dict[str, dict[int, _Passing]] = {}

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    @property
    def passing(self) -> bool:
        """Whether any request is on its way."""
        return any(self._passing.values())

    def add(self, flight: Flight) -> None:
        """A request lost its worker."""
        self._waiting.setdefault(flight.order.model, {})[flight.order.number] = flight

    def discard(self, flight: Flight) -> None:
        """The request is over, or has arrived at its worker: it makes room for the next."""
        number, model = flight.order.number, flight.order.model
        self._waiting.get(model, {}).pop(number, None)
        self._passing.get(model, {}).pop(number, None)

    def left_s(self, model: str, room: Room, now: float) -> float:
        """Seconds of prefill that may still be sent on their way."""
        passing = self._passing.get(model, {})
        for number, (flight, since_s, _) in list(passing.items()):
            if flight.over or now - since_s > PASSING_S:
                del passing[number]
        return self._a_worker_s * room.workers - sum(each.prefill_s for each in passing.values())

    def release(self, model: str, room: Room, now: float) -> Iterator[Flight]:
        """Those whose turn it is; each is on its way from then on.

        Without a worker all go to the queue, where what nobody is there for has its patience.
        """
        waiting = self._waiting.get(model)
        if not waiting:
            return
        left_s = self.left_s(model, room, now)
        for flight in sorted(waiting.values(), key=turn) if left_s > 0 or not room.workers else ():
            if left_s <= 0 and room.workers:
                return
            if flight.suspected and room.workers and self._suspect_passes(model):
                continue
            del waiting[flight.order.number]
            if not flight.over:
                left_s -= self.pass_on(flight, room, now)
                yield flight

    def pass_on(self, flight: Flight, room: Room, now: float) -> float:
        """A request is on its way to another worker; returns its seconds of prefill there."""
        prefill_s = room.token_s * (len(flight.order.prompt_ids) + len(flight.ids))
        passing = self._passing.setdefault(flight.order.model, {})
        passing[flight.order.number] = _Passing(flight, now, prefill_s)
        return prefill_s

    def models(self) -> list[str]:
        """The models of which requests wait."""
        return [model for model, waiting in self._waiting.items() if waiting]

    def _suspect_passes(self, model: str) -> bool:
        return any(each.flight.suspected for each in self._passing.get(model, {}).values())


def turn(flight: Flight) -> tuple[bool, float]:
    """The order in which requests move."""
    order = flight.order
    return order.latency_class is LatencyClass.BATCH, order.arrival_s
