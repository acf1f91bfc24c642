"""How much interactive work one tenant may have, in GPU seconds, while others want some.

Streaming alone makes a request INTERACTIVE, so without a bound everybody would be. The class has its share
of the pool; while its head-room is used up, that share is divided by weight, what one does not use going to
the others (max-min). Who had more lately gets STANDARD for what is beyond it. Without contention nobody is
held to anything, but to a share of its own that was set: neither on an idle mesh, nor where lately nobody
else asked for anything, nor anybody for another class.
"""

from __future__ import annotations

from math import inf

from services.router.policy.classify import LatencyClass
from services.router.policy.demand import Demand
from services.router.policy.settings import PolicySettings
from services.router.policy.ticket import Ticket


class InteractiveBudget:
    """The interactive use of all tenants of one model."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._share = settings.shares[LatencyClass.INTERACTIVE]
        self._granted = Demand(settings.budget_window_s)
        self._kind: tuple[str, LatencyClass] | None = None  # of the request before
        self._mixed_s = -inf

    def asked(self, ticket: Ticket, now: float) -> None:
        """Notes that somebody wants something, of whatever class."""
        kind = (ticket.tenant, ticket.latency_class)
        if self._kind not in (None, kind):
            self._mixed_s = now
        self._kind = kind

    def allows(self, ticket: Ticket, cost_s: float, headroom_used: float, workers: int, now: float) -> bool:
        """Whether a request of so many GPU seconds may be INTERACTIVE; counts it if so."""
        self.asked(ticket, now)
        if not self._settings.interactive_budget:
            return True
        use = self._granted.of(ticket.tenant, ticket.weight, now)
        whole_s = max(workers, 1) * self._settings.budget_window_s
        share = ticket.interactive_share
        if share is not None and use.seconds + cost_s > share * whole_s:
            return False
        if headroom_used > self._settings.budget_pressure and self.contended(now):
            capacity_s = self._share * whole_s
            if use.seconds + cost_s > self._granted.level(capacity_s, now) * use.weight:
                return False
        use.seconds += cost_s
        return True

    def contended(self, now: float) -> bool:
        """Whether several wanted something lately: without that the head-room used does not matter."""
        return abs(now - self._mixed_s) < self._settings.budget_window_s
