"""Output tokens of one session's requests, on their way to the counters and to the scheduler.

The counters are told once a frame; requests of one worker mostly had their last tokens in one frame, so their
gaps are one. The scheduler is told at once of the first tokens at a worker, of the rest every TELL_S, and
before anything that its account of a request has to be complete for.
"""

from __future__ import annotations

from services.router.metrics import Gap, RouterMetrics
from services.router.relay.flight import Flight
from services.router.sessions.floor import Floor

TELL_S = 0.05


class Streamed:
    """What is still to be told."""

    def __init__(self, floor: Floor, metrics: RouterMetrics) -> None:
        self._floor = floor
        self._metrics = metrics
        self._tokens = 0
        self._gaps: dict[Gap, int] = {}
        self._made: dict[Flight, int] = {}
        self._told_s = 0.0

    def note(self, flight: Flight, had: int, before_s: float, now: float) -> None:
        """A flight got tokens; it `had` so many, the last of them at `before_s`."""
        tokens = len(flight.ids) - had
        self._tokens += tokens
        if had:
            gap = Gap(flight.order.latency_class, before_s, tokens)
            self._gaps[gap] = self._gaps.get(gap, 0) + 1
        else:
            self._metrics.began(flight, now)
        if had == flight.had_before:
            self._floor.streamed({flight: tokens}, now)
        else:
            self._made[flight] = self._made.get(flight, 0) + tokens

    def count(self, now: float) -> None:
        """A frame is read."""
        if self._tokens:
            self._metrics.streamed(self._tokens, self._gaps, now)
            self._tokens = 0
            self._gaps.clear()
        if now - self._told_s >= TELL_S:
            self.tell(now)

    def tell(self, now: float) -> None:
        """Tells all."""
        self._told_s = now
        if self._made:
            made, self._made = self._made, {}
            self._floor.streamed(made, now)

    def tell_of(self, flight: Flight, now: float) -> None:
        """Tells of a flight that leaves its worker, or ends."""
        tokens = self._made.pop(flight, 0)
        if tokens:
            self._floor.streamed({flight: tokens}, now)
