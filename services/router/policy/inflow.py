"""The head-room that admitted work is going to use: known seconds before it shows, since answers take long.

    work      GPU seconds a second of what comes: prompts, and the outputs that they bring
    step      lasts fixed + step x work, so it settles at fixed / (1 - work)
    coming    work / (1 - fixed / TPOT target)            1: steps settle at the target

What comes is the prompt tokens that workers compute, of all routers, and those that wait; what outputs add to
it is learnt from requests that ended.
"""

from __future__ import annotations

from math import isfinite

from services.router.policy.occupancy import PrefillRate

_MEMORY_S = 8.0
_LEARNING = 0.01
_LONGEST_S = 600.0


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
