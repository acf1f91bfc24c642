"""Virtual time: things happen in the order of their times, then of their announcement."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf


class Kernel:
    """A queue of things to come."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._announced = 0

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Has something happen at a time, now when that has passed."""
        self._announced += 1
        heapq.heappush(self._events, (max(when_s, self.now), self._announced, act))

    def run(self, until_s: float = inf) -> None:
        """Lets everything happen that is due by then."""
        events = self._events
        while events and events[0][0] <= until_s:
            self.now, _, act = heapq.heappop(events)
            act()
