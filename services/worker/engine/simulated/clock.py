"""The time that a simulated device lives in."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that never go back."""

    def now(self) -> float:
        """Seconds."""

    def sleep_until(self, moment_s: float) -> None:
        """Return when it is `moment_s`, at once when that has passed."""


class RealClock:
    """The machine's monotonic clock; sleeping threads do not hold the interpreter."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment_s: float) -> None:
        while (left_s := moment_s - time.monotonic()) > 0.0:
            time.sleep(left_s)


class VirtualClock:
    """Time that passes only by sleeping."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now(self) -> float:
        return self._now_s

    def sleep_until(self, moment_s: float) -> None:
        self._now_s = max(self._now_s, moment_s)
