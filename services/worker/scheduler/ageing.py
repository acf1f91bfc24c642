"""No starvation: whoever makes no progress for its class's bound rises one tier, and again after as long."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from services.worker.scheduler.policy import SchedulerSettings, ageing_s, raised
from services.worker.scheduler.sequence import Sequence


class _Check(NamedTuple):
    due_s: float
    number: int  # so that no two checks compare by their sequences
    sequence: Sequence


class Ageing:
    """Watches sequences, waiting or resident, from when they are added until they finish."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._checks: list[_Check] = []
        self._number = 0

    def watch(self, sequence: Sequence) -> None:
        """Look at it when its bound has passed since it last made progress."""
        bound_s = ageing_s(sequence.request, self._settings)
        if bound_s is not None and sequence.place.tier > 0:
            self._number += 1
            heapq.heappush(self._checks, _Check(sequence.last_launch_s + bound_s, self._number, sequence))

    def is_due(self, now: float) -> bool:
        """Whether `rise` would look at a sequence."""
        return bool(self._checks) and self._checks[0].due_s <= now

    def rise(self, now: float) -> Iterator[Sequence]:
        """Give a better place to whoever waited too long, and say who it was."""
        while self._checks and self._checks[0].due_s <= now:
            sequence = heapq.heappop(self._checks).sequence
            if sequence.finished:
                continue
            starved = sequence.last_launch_s + (ageing_s(sequence.request, self._settings) or 0.0) <= now
            if starved:
                sequence.stand(raised(sequence.place))
                sequence.last_launch_s = now  # the next tier is as far away again
            self.watch(sequence)
            if starved:
                yield sequence
