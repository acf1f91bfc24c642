"""How much interactive work one tenant may have, in GPU seconds, while others want some.

Streaming alone makes a request INTERACTIVE, so without a bound everybody would be. While the head-room of the
class is used up, who had more than its part lately gets STANDARD for what is beyond it. Parts are by weight,
what one does not use going to the others (max-min), and two of them hold:

    of the class's share of the pool      among those that had interactive work
    of that and STANDARD's together       among those that asked for either: who asks plainly counts as well

Without contention nobody is held to anything, but to a share of its own that was set: neither on an idle
mesh, nor where lately nobody else asked for anything, nor anybody for another class.
"""

from __future__ import annotations

from math import inf

from services.router.policy.classify import LatencyClass
from services.router.policy.demand import Demand
from services.router.policy.settings import PolicySettings
from services.router.policy.ticket import Ticket


class InteractiveBudget:
    """The interactive use of all tenants of one model, and what they asked for of foreground work."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        shares = settings.shares
        self._share = shares[LatencyClass.INTERACTIVE]
        self._foreground_share = self._share + shares[LatencyClass.STANDARD]
        self._granted = Demand(settings.budget_window_s)
        self._asked = Demand(settings.budget_window_s)
        self._kind: tuple[str, LatencyClass] | None = None  # of the request before
        self._mixed_s = -inf

    def asked(self, ticket: Ticket, cost_s: float, now: float) -> None:
        """Notes that somebody wants something, of whatever class; to be told once of every request."""
        kind = (ticket.tenant, ticket.latency_class)
        if self._kind not in (None, kind):
            self._mixed_s = now
        self._kind = kind
        if ticket.foreground:
            self._asked.of(ticket.tenant, ticket.weight, now).seconds += cost_s

    def allows(self, ticket: Ticket, cost_s: float, headroom_used: float, workers: int, now: float) -> bool:
        """Whether a request of so many GPU seconds, that was `asked`, may be INTERACTIVE; counts it if so."""
        if not self._settings.interactive_budget:
            return True
        use = self._granted.of(ticket.tenant, ticket.weight, now)
        whole_s = max(workers, 1) * self._settings.budget_window_s
        share = ticket.interactive_share
        if share is not None and use.seconds + cost_s > share * whole_s:
            return False
        if headroom_used > self._settings.budget_pressure and self.contended(now):
            level = min(
                self._granted.level(self._share * whole_s, now),
                self._asked.level(self._foreground_share * whole_s, now),
            )
            if use.seconds + cost_s > level * use.weight:
                return False
        use.seconds += cost_s
        return True

    def contended(self, now: float) -> bool:
        """Whether several wanted something lately: without that the head-room used does not matter."""
        return abs(now - self._mixed_s) < self._settings.budget_window_s
