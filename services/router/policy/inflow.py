"""The head-room that admitted work is going to use: known seconds before it shows, since answers take long.

    work      GPU seconds a second of what comes: prompts, and the outputs that they bring
    step      lasts fixed + step x work, so it settles at fixed / (1 - work)
    coming    work / (1 - fixed / TPOT target)            1: steps settle at the target

    offered   coming / (1 - what was shed of all that was asked for)
    shed      p of what may be shed, so that what is left of the offered comes to the limit

What comes is the prompt tokens that workers compute, of all routers, and those that wait; what outputs add to
it is learnt from requests that ended.
"""

from __future__ import annotations

from math import exp, isfinite

from services.router.policy.occupancy import PrefillRate

_MEMORY_S = 8.0
_LEARNING = 0.01
_LONGEST_S = 600.0
_LEAST_KEPT = 0.1


class Inflow:
    """Work that comes to one model's workers."""

    def __init__(self) -> None:
        self.prompts = PrefillRate(_MEMORY_S)
        self._prefill_s = 0.0
        self._whole_s = 0.0

    def ended(self, prefill_s: float, decode_s: float) -> None:
        """A request took so long in all, the fixed costs of steps not counted."""
        whole_s = prefill_s + decode_s
        if isfinite(whole_s) and 0.0 <= prefill_s <= whole_s <= _LONGEST_S:
            self._prefill_s += _LEARNING * (prefill_s - self._prefill_s)
            self._whole_s += _LEARNING * (whole_s - self._whole_s)

    def used(self, tokens_per_s: float, waiting_s: float, room: float) -> float:
        """Head-room that it will use of workers that compute so many prompt tokens a second.

        Args:
            waiting_s: prefill that waits, a worker: came faster than it could be computed.
            room: the part of a step at its target that is not its fixed cost.
        """
        if self._prefill_s <= 0.0:
            return 0.0
        prompts = self.prompts.tokens_per_s / max(tokens_per_s, 1e-9) + waiting_s / _MEMORY_S
        return prompts * self._whole_s / self._prefill_s / room


class Offered:
    """What was asked for lately, in GPU seconds that fade."""

    def __init__(self) -> None:
        self._all_s = 0.0
        self._sheddable_s = 0.0
        self._shed_s = 0.0
        self._at_s = 0.0

    def count(self, cost_s: float, now: float, *, sheddable: bool, shed: bool) -> None:
        """A request was asked for."""
        kept = exp(-max(0.0, now - self._at_s) / _MEMORY_S)
        cost_s = min(max(cost_s, 0.0), _LONGEST_S)
        self._all_s = self._all_s * kept + cost_s
        self._sheddable_s = self._sheddable_s * kept + cost_s * sheddable
        self._shed_s = self._shed_s * kept + cost_s * shed
        self._at_s = now

    def beyond(self, coming: float, limit: float) -> float:
        """The share to refuse of what may be shed, 0 to 1, so that what comes is within the limit."""
        if self._sheddable_s <= 0.0:
            return 0.0
        offered = coming / max(1.0 - self._shed_s / self._all_s, _LEAST_KEPT)
        least = max(offered * self._sheddable_s / self._all_s, 1e-9)
        return min(max((offered - limit) / least, 0.0), 1.0)
