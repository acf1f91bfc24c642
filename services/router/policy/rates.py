"""A rate with a burst: the generic cell rate algorithm, one number a bucket.

A bucket of `burst` units refills at `units_per_s`. Whoever finds it with anything in it may take all that a
request costs, and leaves a debt that later requests wait for: a request larger than the burst is late, not
impossible.
"""

from __future__ import annotations


class Gcra:
    """One bucket. Times are seconds of any clock that does not run backwards."""

    __slots__ = ("_burst_s", "_empty_until", "_seconds_a_unit")

    def __init__(self, units_per_s: float, burst_units: float) -> None:
        self._seconds_a_unit = 1.0 / units_per_s
        self._burst_s = burst_units * self._seconds_a_unit
        self._empty_until = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the bucket has something in it; 0 when it has."""
        return max(0.0, self._theoretical(now) - now - self._burst_s + self._slack())

    def take(self, now: float, units: float) -> None:
        """Takes units, whether they are there or not."""
        self._empty_until = self._theoretical(now) + units * self._seconds_a_unit

    def _theoretical(self, now: float) -> float:
        return max(self._empty_until, now)

    def _slack(self) -> float:
        """A bucket that holds less than one unit (or all of a smaller burst) counts as empty."""
        return min(self._seconds_a_unit, self._burst_s) * (1 - 1e-9)
