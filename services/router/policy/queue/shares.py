"""Deficit round robin over lanes, in GPU seconds; the most urgent lane that has something left goes first.

A round hands each lane its share of `round_s`. A lane in debt, because its last request cost more than it
had, waits for as many rounds as that takes. Nothing is saved up while a lane has nothing to give: it keeps
one round's share at most, so that it is served at once when it comes back and cannot flood afterwards.
Source: Shreedhar and Varghese, "Efficient fair queuing using deficit round robin", 1996.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import isfinite

DEAREST_S = 3600.0
"""No single request counts for more: a wrong estimate must not shut a lane for ever."""
_LEAST_SHARE = 1e-6


class Shares:
    """The balances of lanes 0, 1, 2, …, the most urgent first."""

    def __init__(self, shares: Sequence[float], round_s: float) -> None:
        total = sum(shares)
        self._quantum = [max(each / total, _LEAST_SHARE) * round_s for each in shares]
        self.balance = list(self._quantum)

    def order(self, waiting: Collection[int]) -> list[int]:
        """The lanes that wait, the next to be served first."""
        return sorted(waiting, key=lambda lane: (self._rounds_until(lane), lane))

    def charge(self, lane: int, cost_s: float, waiting: Collection[int]) -> None:
        """A lane was served; `waiting`: the lanes that could have been served as well."""
        rounds = self._rounds_until(lane)
        if rounds:
            self._advance(rounds, {*waiting, lane})
        self.balance[lane] -= bounded(cost_s)

    def settle(self, lane: int, cost_s: float) -> None:
        """Corrects an estimate by what came out: more than thought is positive."""
        dearest = min(max(cost_s, -DEAREST_S), DEAREST_S) if isfinite(cost_s) else 0.0
        self.balance[lane] = min(self.balance[lane] - dearest, self._quantum[lane])

    def _rounds_until(self, lane: int) -> int:
        """Rounds until the lane has something left; 0 when it has."""
        balance = self.balance[lane]
        return 0 if balance > 0 else int(-balance / self._quantum[lane]) + 1

    def _advance(self, rounds: int, waiting: Collection[int]) -> None:
        for lane, quantum in enumerate(self._quantum):
            grown = self.balance[lane] + rounds * quantum
            self.balance[lane] = grown if lane in waiting else min(grown, quantum)


def bounded(cost_s: float) -> float:
    """A cost that can be counted with, whatever an estimate came to."""
    return min(max(cost_s, 0.0), DEAREST_S) if isfinite(cost_s) else DEAREST_S
