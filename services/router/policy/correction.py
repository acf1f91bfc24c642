"""What predictions are corrected by: how the last ones turned out."""

from __future__ import annotations

from math import isfinite

FORGETTING = 0.97
_GRAIN_S = 0.02
"""Errors below this are noise."""
_LARGEST_FACTOR = 16.0
_LARGEST_OFFSET_S = 60.0
_HOLD = 1e-3
"""How strongly nothing-learnt (factor 1, offset 0) holds against one outcome."""


class Correction:
    """actual = factor x predicted + offset, by least squares on the relative error, fading.

    Both, because a delay that short predictions miss must not be multiplied into long ones.
    """

    __slots__ = ("_offsets", "_products", "_squares", "_targets", "_weights", "error", "factor", "offset_s")

    def __init__(self) -> None:
        self.factor = 1.0
        self.offset_s = 0.0
        self.error = 0.0
        """Moving mean of |actual - predicted| / actual, of corrected predictions, each at most 1."""
        self._squares = self._offsets = self._products = self._targets = self._weights = 0.0

    def apply(self, predicted_s: float) -> float:
        """A prediction, corrected."""
        return max(0.0, self.factor * predicted_s + self.offset_s)

    def learn(self, predicted_s: float, actual_s: float) -> None:
        """Takes one outcome into account; `predicted_s` is before the correction."""
        if not (isfinite(predicted_s) and isfinite(actual_s)):
            return
        if actual_s < 0 or max(predicted_s, actual_s) <= 0:
            return
        miss = abs(self.apply(predicted_s) - actual_s) / (actual_s + _GRAIN_S)
        self.error += (1 - FORGETTING) * (min(miss, 1.0) - self.error)
        self._observe(min(max(predicted_s, 0.0), 1e4), min(actual_s, 1e4))
        self._solve()

    def _observe(self, predicted_s: float, actual_s: float) -> None:
        weight = 1.0 / (actual_s + _GRAIN_S) ** 2
        self._squares = FORGETTING * self._squares + weight * (predicted_s * predicted_s)
        self._offsets = FORGETTING * self._offsets + weight * predicted_s
        self._weights = FORGETTING * self._weights + weight
        self._products = FORGETTING * self._products + weight * (predicted_s * actual_s)
        self._targets = FORGETTING * self._targets + weight * actual_s

    def _solve(self) -> None:
        """Least squares of both; where one leaves its bounds, of the other alone."""
        squares, weights = self._squares + _HOLD, self._weights + _HOLD
        products = self._products + _HOLD
        determinant = squares * weights - self._offsets * self._offsets
        factor = (products * weights - self._offsets * self._targets) / determinant
        factor = min(max(factor, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)
        offset_s = (self._targets - factor * self._offsets) / weights
        if offset_s < 0:
            factor = min(max(products / squares, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)
        self.factor, self.offset_s = factor, min(max(offset_s, 0.0), _LARGEST_OFFSET_S)
