"""All requests of this router process between acceptance and end, with their deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from services.router.relay.flight import Flight


class Flights:
    """Requests by number.

    Args:
        deadline_passed: called with a request whose deadline passed while it was held.
    """

    def __init__(self, deadline_passed: Callable[[Flight], None]) -> None:
        self._deadline_passed = deadline_passed
        self._by_number: dict[int, Flight] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
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
            left_s = max(0.0, deadline_s - time.monotonic())
            loop = asyncio.get_running_loop()
            self._timers[number] = loop.call_later(left_s, self._deadline_passed, flight)

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
        timer = self._timers.pop(number, None)
        if timer is not None:
            timer.cancel()
