"""When to stop asking Valkey: pure, the caller brings the clock (monotonic seconds) and the randomness.

Open when at least half of the calls failed, or the slowest hundredth (and more than one) took over 20 ms,
over at least 20 calls of the last 10 s; or at once when the server is known to be away. Then a probe, not a
caller, finds out whether it is back: after 1 s · 2^k, at most 30 s, with jitter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

WINDOW_S = 10.0
MIN_CALLS = 20
FAILED_SHARE = 0.5
SLOW_S = 0.020
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0


class _Call(NamedTuple):
    at_s: float
    failed: bool
    slow: bool


class Breaker:
    """Starts open with a probe due: nothing is relied on before it answered once.

    Args:
        jitter: returns a number in [0, 1); probes wait between half and the whole of their time.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._calls: deque[_Call] = deque()
        self._failed = self._slow = 0
        self._opened_in_a_row = 0
        self._closed_s = 0.0
        self.closed = False
        self.probe_due_s = 0.0

    def record(self, ok: bool, seconds: float, now: float) -> None:
        """One call ended while closed; may open."""
        call = _Call(now, not ok, seconds > SLOW_S)
        self._calls.append(call)
        self._failed += call.failed
        self._slow += call.slow
        self._expire(now)
        if self.closed and self._bad():
            self.open(now)

    def open(self, now: float) -> None:
        """Stops all calls until a probe succeeds."""
        if self.closed and now - self._closed_s > WINDOW_S:
            self._opened_in_a_row = 0
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._opened_in_a_row)
        self._opened_in_a_row = min(self._opened_in_a_row + 1, 5)
        self.closed = False
        self.probe_due_s = now + wait_s * (0.5 + 0.5 * self._jitter())

    def close(self, now: float) -> None:
        """A probe succeeded: calls may pass. Only after a while like this does the wait start small again."""
        self.closed = True
        self._closed_s = now
        self._calls.clear()
        self._failed = self._slow = 0

    def _bad(self) -> bool:
        count = len(self._calls)
        return count >= MIN_CALLS and (
            self._failed >= FAILED_SHARE * count or self._slow > max(1, 0.01 * count)
        )

    def _expire(self, now: float) -> None:
        while self._calls and self._calls[0].at_s < now - WINDOW_S:
            old = self._calls.popleft()
            self._failed -= old.failed
            self._slow -= old.slow
