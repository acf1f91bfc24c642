"""How long each tenant's prompts kept this worker lately: who had little goes before who had much.

Routers share workers fairly where requests wait for them. Here a line is short, but a heavy neighbour's
prompts fill it: without this a light tenant's waited behind several of them. A request's place is its arrival
plus what its tenant had in the last `WINDOW_S` seconds. No tenant can have had more than all of them: nobody
waits longer than that for others' sake, and one tenant's own requests keep their order.
"""

from __future__ import annotations

from math import exp
from typing import NamedTuple

WINDOW_S = 2.0
_TENANTS = 4096
_LEAST_S = 1e-3


class _Had(NamedTuple):
    seconds: float
    at_s: float


class RecentWork:
    """Seconds of prompts by tenant, fading."""

    def __init__(self) -> None:
        self._had: dict[bytes, _Had] = {}

    def of(self, tenant: bytes, now: float) -> float:
        """Seconds that count now, at most `WINDOW_S`."""
        had = self._had.get(tenant)
        return 0.0 if had is None else had.seconds * exp(-max(0.0, now - had.at_s) / WINDOW_S)

    def add(self, tenant: bytes, seconds: float, now: float) -> None:
        """A chunk of the tenant's takes so long."""
        if len(self._had) >= _TENANTS and tenant not in self._had:
            self._forget(now)
        self._had[tenant] = _Had(min(self.of(tenant, now) + seconds, WINDOW_S), now)

    def _forget(self, now: float) -> None:
        self._had = {name: had for name, had in self._had.items() if self.of(name, now) > _LEAST_S}
        if len(self._had) >= _TENANTS:
            self._had.clear()
