"""One lane of the queue: its tenants by counter, each tenant's requests in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from services.router.policy.classify import LatencyClass
from services.router.policy.queue.counters import Counters
from services.router.policy.queue.order import Entry, OverdueOrder, TenantOrder

_LOOKED_AT, _OF_ONE = 2048, 256
"""Requests in one look at most, and of one tenant, those that are shut among them."""


class Lane(IntEnum):
    """Lanes in order of urgency."""

    AGED = 0
    INTERACTIVE = LatencyClass.INTERACTIVE
    STANDARD = LatencyClass.STANDARD
    BATCH = LatencyClass.BATCH


LANES = tuple(Lane)


@dataclass(slots=True)
class Held:
    """What one tenant has waiting, or a class of it."""

    requests: int = 0
    bytes: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    cost_s: float = 0.0

    def add(self, entry: Entry, sign: int) -> None:
        """Counts a request in (1) or out (-1)."""
        self.requests += sign
        self.bytes += sign * entry.ticket.queued_bytes
        self.prefill_tokens += sign * entry.ticket.prefill_tokens
        self.prefill_s = max(0.0, self.prefill_s + sign * entry.prefill_s) if self.requests else 0.0
        self.cost_s = max(0.0, self.cost_s + sign * entry.cost_s) if self.requests else 0.0


Order = TenantOrder | OverdueOrder


class _Sole(NamedTuple):
    """The only request of a lane, whose tenant has no order yet."""

    entry: Entry
    tenant: str


class TenantLane:
    """The tenants of one lane.

    A request that comes into an empty lane mostly goes at once: only when somebody looks behind it, or it is
    late, does its tenant get an order.
    """

    __slots__ = ("_order", "_orders", "_sole", "chained", "counters", "size")

    def __init__(self, order: Callable[[], Order], counters: Counters) -> None:
        self._order = order
        self._orders: dict[str, Order] = {}
        self._sole: _Sole | None = None
        self.counters = counters
        self.size = 0
        self.chained = 0
        """Requests that may be warm somewhere."""

    @property
    def orders(self) -> dict[str, Order]:
        """By tenant."""
        sole, self._sole = self._sole, None
        if sole is not None:
            self._line_up(*sole)
        return self._orders

    def add(self, entry: Entry, tenant: str) -> None:
        """Puts a request in its place."""
        if self.size:
            self._line_up(entry, tenant)
        else:
            self._sole = _Sole(entry, tenant)
        self.size += 1
        self.chained += bool(entry.ticket.chains)

    def remove(self, entry: Entry, tenant: str) -> None:
        """Takes a request out."""
        self.size -= 1
        self.chained -= bool(entry.ticket.chains)
        if self._sole is not None:
            self._sole = None
            return
        order = self._orders[tenant]
        order.remove(entry)
        if not order:
            del self._orders[tenant]

    def tenants(self, without: AbstractSet[str] = frozenset()) -> Iterator[Order]:
        """The tenants that have something here, the least served first."""
        for tenant in self.counters.tenants():
            order = self.orders.get(tenant)
            if order is not None and tenant not in without:
                yield order

    def in_order(
        self,
        now: float,
        of_one_tenant: int,
        without: AbstractSet[str] = frozenset(),
        shut: Callable[[Entry], bool] = lambda entry: False,
    ) -> Iterator[Entry]:
        """The requests to try, at most so many of each tenant, the next to go first.

        `shut`: which cannot go now, whatever else goes; a bounded number of them is in nobody's way.
        """
        sole = self._sole
        if sole is not None and sole.entry.due_s >= now:
            if sole.tenant not in without and not shut(sole.entry):
                yield sole.entry
            return
        looked_at = 0
        for order in self.tenants(without):
            found = 0
            for entry in islice(order.in_order(now), max(_OF_ONE, of_one_tenant)):
                looked_at += 1
                if not shut(entry):
                    yield entry
                    found += 1
                elif looked_at >= _LOOKED_AT:
                    return
                if found == of_one_tenant:
                    break

    def _line_up(self, entry: Entry, tenant: str) -> None:
        orders = self.orders
        order = orders.get(tenant)
        if order is None:
            order = orders[tenant] = self._order()
        order.add(entry)
