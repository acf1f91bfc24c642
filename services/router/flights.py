"""All requests of this router process between acceptance and end, with their deadlines.

Nearly all end long before their deadline, so they share one timer, which is set for the first of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from services.router.relay.flight import Flight

FEW = 1024
"""So many deadlines of requests that have ended may lie about, beside one for each that has not."""


class Flights:
    """Requests by number.

    Args:
        deadline_passed: called with a request whose deadline passed while it was held.
    """

    def __init__(self, deadline_passed: Callable[[Flight], None]) -> None:
        self._deadline_passed = deadline_passed
        self._by_number: dict[int, Flight] = {}
        self._deadlines: list[tuple[float, int]] = []
        """A heap, with the numbers of the requests: of those that have ended, too."""
        self._timer: asyncio.TimerHandle | None = None
        self._on_start: dict[int, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._by_number.values()))

    def __getitem__(self, number: int) -> Flight:
        return self._by_number[number]

    def get(self, number: int) -> Flight | None:
        """The request of a number, if it is held."""
        return self._by_number.get(number)

    def hold(self, flight: Flight, on_start: Callable[[], None] | None = None) -> None:
        """A request comes; `on_start` is called when it first gets a worker."""
        number, deadline_s = flight.order.number, flight.order.deadline_s
        self._by_number[number] = flight
        if on_start is not None:
            self._on_start[number] = on_start
        if deadline_s is not None:
            self._await(deadline_s, number)

    def started(self, flight: Flight) -> None:
        """A request got a worker."""
        on_start = self._on_start.pop(flight.order.number, None)
        if on_start is not None:
            on_start()

    def forget(self, flight: Flight) -> None:
        """A request goes."""
        number = flight.order.number
        self._by_number.pop(number, None)
        self._on_start.pop(number, None)

    def _await(self, deadline_s: float, number: int) -> None:
        if len(self._deadlines) >= 2 * len(self._by_number) + FEW:
            self._deadlines = [each for each in self._deadlines if each[1] in self._by_number]
            heapify(self._deadlines)
        heappush(self._deadlines, (deadline_s, number))
        if self._deadlines[0][1] == number:
            self._set_timer()

    def _set_timer(self) -> None:
        """For the first deadline that a request has."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._deadlines and self._deadlines[0][1] not in self._by_number:
            heappop(self._deadlines)
        if self._deadlines:
            left_s = max(0.0, self._deadlines[0][0] - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._time_is_up)

    def _time_is_up(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            flight = self._by_number.get(heappop(self._deadlines)[1])
            if flight is not None:
                self._deadline_passed(flight)
        self._set_timer()
