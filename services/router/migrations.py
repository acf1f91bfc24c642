"""Requests that lost their worker and go on elsewhere: so many at a time, the others wait with their place.

A dead worker's streams have waited longest, so they would go before everything that is new, and each must
compute its prompt and its output again before its next token. At most `a_worker` of them for each worker that
is there are on their way at once: they share their target's steps with streams that run there, and with
requests that have just come. Foreground goes before batch, the oldest first.

A request is on its way until its first token there; one that takes longer than PASSING_S counts no more, so
that nothing is held up by what nobody can take. One that is suspected of having killed its worker goes when
no other suspect is on its way: if its next worker dies too, it is known who did it.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.router.policy import LatencyClass
from services.router.relay.flight import Flight

PASSING_S = 2.0


class Migrations:
    """Moved requests of all models. All methods are synchronous; times in seconds."""

    def __init__(self, a_worker: int) -> None:
        self._a_worker = a_worker
        self._waiting: dict[str, dict[int, Flight]] = {}
        self._passing: dict[str, dict[int, tuple[Flight, float]]] = {}

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

    def room(self, model: str, workers: int, now: float) -> int:
        """How many more may be on their way, with so many workers to go to."""
        passing = self._passing.get(model, {})
        for number, (flight, since_s) in list(passing.items()):
            if flight.over or now - since_s > PASSING_S:
                del passing[number]
        return max(0, self._a_worker * workers - len(passing))

    def release(self, model: str, workers: int, now: float) -> Iterator[Flight]:
        """Those whose turn it is; each is on its way from then on.

        Without a worker all go to the queue, where what nobody is there for has its patience.
        """
        waiting = self._waiting.get(model)
        if not waiting:
            return
        room = self.room(model, workers, now) if workers else len(waiting)
        for flight in sorted(waiting.values(), key=turn) if room else ():
            if not room:
                return
            if flight.suspected and workers and self._suspect_passes(model):
                continue
            del waiting[flight.order.number]
            if not flight.over:
                self.pass_on(flight, now)
                room -= 1
                yield flight

    def pass_on(self, flight: Flight, now: float) -> None:
        """A request is on its way to another worker."""
        self._passing.setdefault(flight.order.model, {})[flight.order.number] = (flight, now)

    def models(self) -> list[str]:
        """The models of which requests wait."""
        return [model for model, waiting in self._waiting.items() if waiting]

    def _suspect_passes(self, model: str) -> bool:
        return any(flight.suspected for flight, _ in self._passing.get(model, {}).values())


def turn(flight: Flight) -> tuple[bool, float]:
    """The order in which requests move."""
    order = flight.order
    return order.latency_class is LatencyClass.BATCH, order.arrival_s
