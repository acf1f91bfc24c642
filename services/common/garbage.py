"""Cyclic garbage of a service, collected without long pauses.

Python's own full collections look at every object there is: with thousands of requests waiting they stop the
event loop for hundreds of milliseconds, again and again. Here they are off; young objects are collected as
always. A turn, every second, collects what is not frozen. Where that begins to take long, what survived is
frozen, so that the next turn does not look at it again; a frozen object is freed when its last reference
goes, as any other. Only garbage in cycles among the frozen stays, and at most as much as there is of
everything else: then all is looked at once.
"""

from __future__ import annotations

import asyncio
import gc
import time

TURN_S = 1.0
LONG_S = 0.005
"""CPU seconds of a turn beyond which what survives it is frozen."""
COUNT_AFTER_S = 0.5
"""CPU seconds of such turns after which the frozen are counted, which takes long by itself."""
LEAST_FROZEN = 1_000_000
"""Objects: fewer of them as garbage are not worth a long pause."""
_YOUNG, _MIDDLE = 5_000, 10
_NEVER = 1 << 30


class Collector:
    """Takes the place of Python's own full collections in this process."""

    def __init__(
        self, long_s: float = LONG_S, count_after_s: float = COUNT_AFTER_S, least: int = LEAST_FROZEN
    ) -> None:
        """Freezes what is there: modules and all that lives as long as the process."""
        gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
        self.passes = 0
        """How often everything was looked at."""
        self._long_s, self._count_after_s, self._least = long_s, count_after_s, least
        self._spent_s = 0.0
        self._lived = 0
        self._look_at_all()

    def turn(self) -> None:
        """Collects what is not frozen; freezes what is left where that took long."""
        started_s = time.thread_time()
        gc.collect()
        took_s = time.thread_time() - started_s
        if took_s > self._long_s:
            gc.freeze()
            self._spent_s += took_s
        if self._spent_s > self._count_after_s:
            self._spent_s = 0.0
            if gc.get_freeze_count() > self._lived + max(self._lived, self._least):
                self._look_at_all()

    async def run(self) -> None:
        """Turns for ever."""
        while True:
            await asyncio.sleep(TURN_S)
            self.turn()

    def _look_at_all(self) -> None:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._lived = gc.get_freeze_count()
        self._spent_s = 0.0
        self.passes += 1
