"""How much interactive work one tenant may have, in GPU seconds, while others want some.

Streaming alone makes a request INTERACTIVE, so without a bound everybody would be. The class has its share
of the pool; while its head-room is used up, that share is divided by weight, what one does not use going to
the others (max-min). Who had more lately gets STANDARD for what is beyond it. Without contention nobody is
held to anything: a lone tenant on an idle mesh may use all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

from services.router.policy.classify import LatencyClass
from services.router.policy.settings import PolicySettings
from services.router.policy.ticket import Ticket

_REFRESH_S = 0.25
_LEAST_S = 1e-4
_TENANTS = 4096


@dataclass(slots=True)
class _Use:
    """GPU seconds that a tenant asked for, fading."""

    seconds: float
    at_s: float
    weight: float


class InteractiveBudget:
    """The interactive use of all tenants of one model."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._share = settings.shares[LatencyClass.INTERACTIVE]
        self._uses: dict[str, _Use] = {}
        self._level = float("inf")
        self._level_at = float("-inf")

    def allows(self, ticket: Ticket, cost_s: float, headroom_used: float, workers: int, now: float) -> bool:
        """Whether a request of so many GPU seconds may be INTERACTIVE; counts it if so."""
        if not self._settings.interactive_budget:
            return True
        use = self._use(ticket, now)
        contended = headroom_used > self._settings.budget_pressure
        if contended and use.seconds + cost_s > self._allowance(use, workers, now):
            return False
        use.seconds += cost_s
        return True

    def _use(self, ticket: Ticket, now: float) -> _Use:
        use = self._uses.get(ticket.tenant)
        if use is None:
            self._forget(now)
            use = self._uses[ticket.tenant] = _Use(0.0, now, ticket.weight)
        use.weight = max(ticket.weight, 1e-3)
        self._fade(use, now)
        return use

    def _allowance(self, use: _Use, workers: int, now: float) -> float:
        """GPU seconds of the last window that are the tenant's."""
        if not 0 <= now - self._level_at < _REFRESH_S:
            self._level = self._water_level(self._share * max(workers, 1) * self._window(), now)
            self._level_at = now
        return self._level * use.weight

    def _water_level(self, capacity_s: float, now: float) -> float:
        """Seconds for a weight of 1 so that all who want less are served and the others share the rest."""
        for use in self._uses.values():
            self._fade(use, now)
        wants = sorted(self._uses.values(), key=lambda use: use.seconds / use.weight)
        weights = sum(use.weight for use in wants)
        for use in wants:
            if use.seconds * weights >= capacity_s * use.weight:
                break
            capacity_s -= use.seconds
            weights -= use.weight
        return capacity_s / weights if weights > 1e-9 else float("inf")

    def _fade(self, use: _Use, now: float) -> None:
        """A window of steady use adds up to that window's seconds."""
        use.seconds *= exp(-max(0.0, now - use.at_s) / self._window())
        use.at_s = now

    def _window(self) -> float:
        return self._settings.budget_window_s

    def _forget(self, now: float) -> None:
        if len(self._uses) < _TENANTS:
            return
        for use in self._uses.values():
            self._fade(use, now)
        self._uses = {name: use for name, use in self._uses.items() if use.seconds > _LEAST_S}
        if len(self._uses) >= _TENANTS:
            self._uses.clear()
