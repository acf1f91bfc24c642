"""How much each tenant asked for lately, in GPU seconds, and how a capacity is divided fairly among them."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf

_REFRESH_S = 0.25
_LEAST_S = 1e-4
_LEAST_WEIGHT = 1e-3
_TENANTS = 4096
_SPARED = 0.1
"""Of all work, what is left to those that ask for little, however much is to be refused."""


@dataclass(slots=True)
class Use:
    """GPU seconds of one tenant; they fade: a window of steady use adds up to that window's seconds."""

    seconds: float
    at_s: float
    weight: float


class Demand:
    """The use of all tenants within a window that fades."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._uses: dict[str, Use] = {}
        self._level = inf
        self._level_at = -inf

    def of(self, tenant: str, weight: float, now: float) -> Use:
        """A tenant's use up to now; the caller adds to it."""
        use = self._uses.get(tenant)
        if use is None:
            self._forget(now)
            use = self._uses[tenant] = Use(0.0, now, weight)
        use.weight = weight if weight >= _LEAST_WEIGHT else _LEAST_WEIGHT  # also where it is not a number
        self._fade(use, now)
        return use

    def level(self, capacity_s: float, now: float) -> float:
        """What a weight of 1 may have of a capacity: who wants less has it, the others share the rest.

        Worked out anew a few times a second (max-min fairness).
        """
        if not 0 <= now - self._level_at < _REFRESH_S:
            self._level, self._level_at = self._water_level(capacity_s, now), now
        return self._level

    def total(self, now: float) -> float:
        """GPU seconds of all tenants."""
        for use in self._uses.values():
            self._fade(use, now)
        return sum(use.seconds for use in self._uses.values())

    def _water_level(self, capacity_s: float, now: float) -> float:
        for use in self._uses.values():
            self._fade(use, now)
        wants = sorted(self._uses.values(), key=lambda use: use.seconds / use.weight)
        weights = sum(use.weight for use in wants)
        for use in wants:
            if use.seconds * weights >= capacity_s * use.weight:
                break
            capacity_s -= use.seconds
            weights -= use.weight
        return capacity_s / weights if weights > 1e-9 else inf

    def _fade(self, use: Use, now: float) -> None:
        use.seconds *= exp(-max(0.0, now - use.at_s) / self._window_s)
        use.at_s = now

    def _forget(self, now: float) -> None:
        if len(self._uses) < _TENANTS:
            return
        for use in self._uses.values():
            self._fade(use, now)
        self._uses = {name: use for name, use in self._uses.items() if use.seconds > _LEAST_S}
        if len(self._uses) >= _TENANTS:
            self._uses.clear()


class FairThinning:
    """A share of all work to refuse, taken from those that ask for more than their part."""

    def __init__(self, window_s: float) -> None:
        self._offered = Demand(window_s)

    def share(self, tenant: str, weight: float, cost_s: float, refused: float, now: float) -> float:
        """The share of the tenant's requests to refuse where `refused` of all work is; counts this one."""
        use = self._offered.of(tenant, weight, now)
        use.seconds += cost_s
        if refused <= 0:
            return 0.0
        kept_s = max(1 - refused, _SPARED) * self._offered.total(now)
        allowed_s = self._offered.level(kept_s, now) * use.weight
        if use.seconds <= allowed_s:
            return 0.0
        return min(1 - allowed_s / use.seconds, 1.0) if refused < 1 else 1.0
