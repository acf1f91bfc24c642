"""What part of the workers' KV memory each tenant's running requests hold, where that is limited.

A tenant that holds its part waits with all it has queued, whatever its class; others go on. It may pass its
part by what one request needs more than the one before: what the next one takes is known when it goes.
"""

from __future__ import annotations

from typing import NamedTuple

from services.router.policy import Assignment, Scheduler
from services.router.quotas import KV_UNITS, Quotas


class _Held(NamedTuple):
    tenant: str
    units: float


class KvShares:
    """Holds of all requests of this router that run."""

    def __init__(self, scheduler: Scheduler, quotas: Quotas) -> None:
        self._scheduler = scheduler
        self._quotas = quotas
        self._held: dict[int, _Held] = {}
        self._last: dict[str, float] = {}

    def seated(self, assignment: Assignment, now: float) -> None:
        """A request was given to a worker."""
        ticket = assignment.ticket
        level = self._quotas.kv_of(ticket.tenant)
        if level is None:
            return
        blocks = sum(each.total_blocks for each in self._scheduler.fleet(ticket.model))
        units = KV_UNITS * min(1.0, assignment.cost.kv_blocks / max(blocks, 1))
        self._held[ticket.number] = _Held(ticket.tenant, units)
        self._last[ticket.tenant] = units
        level.hold(now, units)
        self._settle(ticket.tenant, now)

    def left(self, number: int, now: float) -> None:
        """A request has left its worker; again is harmless."""
        held = self._held.pop(number, None)
        level = self._quotas.kv_of(held.tenant) if held is not None else None
        if held is not None and level is not None:
            level.hold(now, -held.units)
            self._settle(held.tenant, now)

    def review(self, now: float) -> None:
        """Looks again at who waits for its part: what others hold may have changed."""
        for tenant in list(self._scheduler.held_back):
            self._settle(tenant, now)

    def _settle(self, tenant: str, now: float) -> None:
        level = self._quotas.kv_of(tenant)
        if level is None or level.allows(now, self._last.get(tenant, 0.0)):
            self._scheduler.held_back.discard(tenant)
        else:
            self._scheduler.held_back.add(tenant)
        if level is not None:
            self._quotas.wanted.set()
