"""What waits for one model: lanes by deficit round robin, tenants by counter, a tenant's own by deadline.

    lanes of classes  INTERACTIVE, STANDARD, BATCH
    lane AGED         overdue requests of all classes, a second chance beside their classes' shares

A request's class decides which of its tenant's counters is charged; the lane only when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from heapq import heappop, heappush
from itertools import islice
from math import inf

from services.router.policy.classify import LatencyClass
from services.router.policy.queue.counters import Counters, Prices
from services.router.policy.queue.lane import LANES, Held, Lane, TenantLane
from services.router.policy.queue.order import Entry, OverdueOrder, Place, TenantOrder
from services.router.policy.queue.shares import Shares, bounded
from services.router.policy.settings import ClassPolicy, PolicySettings
from services.router.policy.ticket import Ticket

_MOVES = 256
"""Requests that become overdue in one look at most: a jump of the clock must not stop the router."""
_SOON_TARGETS, _SOON_PREFILLS = 0.1, 4.0
"""Of its class's target, and of its own prefill, after which a request is wanted to start."""
ALL_TENANTS = ""


class ModelQueue:
    """The waiting requests of one model."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        shares = settings.shares
        whole = sum(each.share for each in settings.classes.values())
        aged = settings.aging_share / whole if settings.aging else 0.0
        self._shares = Shares([aged, *(shares[each] for each in LatencyClass)], settings.round_s)
        prices = Prices(settings.prompt_weight, settings.cached_weight, settings.output_weight)
        self._lanes = [
            TenantLane(
                OverdueOrder if lane is Lane.AGED else partial(TenantOrder, settings.restored_share),
                Counters(prices, lift=settings.lift),
            )
            for lane in LANES
        ]
        self._competing: list[dict[str, int]] = [{} for _ in LANES]
        self._entries: dict[int, Entry] = {}
        self._overdue: list[tuple[float, int]] = []
        self._blocked: set[int] = set()
        self.held: dict[LatencyClass, Held] = {each: Held() for each in LatencyClass}
        """What stands in the lanes."""
        self.aside: dict[LatencyClass, Held] = {each: Held() for each in LatencyClass}
        """What waits beside them."""
        self.tenants: dict[LatencyClass, dict[str, Held]] = {each: {} for each in LatencyClass}
        self.prefill_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def waiting(self, latency_class: LatencyClass) -> int:
        """Requests of a class, those included that no worker is there for."""
        return self.held[latency_class].requests + self.aside[latency_class].requests

    @property
    def any_held(self) -> bool:
        """Whether anything stands in the lanes."""
        return bool(self._entries) and any(each.requests for each in self.held.values())

    def of_tenant(self, tenant: str) -> Held:
        """What a tenant has waiting, of all classes."""
        whole = Held()
        for tenants in self.tenants.values() if self._entries else ():
            if tenant in tenants:
                whole.requests += tenants[tenant].requests
                whole.bytes += tenants[tenant].bytes
        return whole

    def entries(self) -> Iterator[Entry]:
        """Everything that waits, in no particular order."""
        return iter(self._entries.values())

    def add(self, ticket: Ticket, prefill_s: float, cost_s: float, now: float) -> Entry:
        """Puts a request where its arrival belongs. GPU seconds: of its prefill, of all of it."""
        entry = self._entry(ticket, bounded(prefill_s), bounded(cost_s))
        entry.queued_s = now
        self._entries[ticket.number] = entry
        self._line_up(entry)
        self._count(entry, 1)
        return entry

    def remove(self, number: int) -> Entry | None:
        """Takes a request out; None when it does not wait here."""
        entry = self._entries.pop(number, None)
        if entry is not None:
            self._count(entry, -1)
            if not entry.aside:
                self._step_out(entry)
        return entry

    def put_aside(self, entry: Entry, aside: bool) -> None:
        """Takes a request that no worker is there for out of everybody's way, or back to its place."""
        if entry.aside == aside:
            return
        self._count(entry, -1)
        entry.aside, entry.delayed = aside, True
        self._count(entry, 1)
        if aside:
            self._step_out(entry)
        else:
            self._line_up(entry)

    def candidates(
        self,
        now: float,
        without: AbstractSet[str] = frozenset(),
        shut: Callable[[Entry], bool] = lambda entry: False,
    ) -> Iterator[Entry]:
        """The requests to try, the next to go first. Change nothing while walking but by one `take`.

        `without`: tenants that are not to be tried; `shut`: which requests cannot go now.
        """
        self._age(now)
        settings = self._settings
        self._blocked.clear()
        for lane in self._order():
            in_lane = self._lanes[lane].in_order(now, settings.tenant_look_ahead, without, shut)
            for entry in islice(in_lane, settings.look_ahead):
                entry.lane = lane
                yield entry
            self._blocked.add(lane)

    def take(self, entry: Entry, cost_s: float, prompt: int, cached: int) -> None:
        """A candidate goes: charged are its lane's share and its tenant, for the prompt so far."""
        waiting = [lane for lane in LANES if self._lanes[lane].size and lane not in self._blocked]
        self._shares.charge(entry.lane, cost_s, waiting)
        self.charge(entry.ticket, prompt=prompt, cached=cached)
        if entry.lane == Lane.AGED:
            self._lanes[Lane.AGED].counters.charge(
                self._tenant(entry.ticket), prompt, cached, entry.ticket.expected_output
            )
        self.remove(entry.ticket.number)

    def charge(self, ticket: Ticket, prompt: float = 0, cached: float = 0, output: float = 0) -> None:
        """Charges a tenant for what is done for it; negative amounts give back."""
        self._counters(ticket).charge(self._tenant(ticket), prompt, cached, output)

    def charge_output(self, tenant: str, latency_class: LatencyClass, tokens: int) -> None:
        """Charges a tenant for output that came."""
        name = tenant if self._settings.tenant_fairness else ALL_TENANTS
        self._lanes[latency_class].counters.charge(name, output=tokens)

    def correct(self, ticket: Ticket, prompt: float, cached: float) -> None:
        """The prompt of a request turned out otherwise than it was charged."""
        self._counters(ticket).correct(self._tenant(ticket), prompt, cached)

    def settle(self, lane: int, more_s: float) -> None:
        """A request of the lane came to so many GPU seconds more than estimated."""
        self._shares.settle(lane, more_s)

    def served(self, tenant: str, latency_class: LatencyClass, prompt: float, output: float) -> None:
        """What workers did for a tenant, over all routers."""
        name = tenant if self._settings.tenant_fairness else ALL_TENANTS
        self._lanes[latency_class].counters.served(name, prompt, output)

    def counter(self, tenant: str, latency_class: LatencyClass) -> float:
        """The tenant's counter in a class, in weighted tokens."""
        name = tenant if self._settings.tenant_fairness else ALL_TENANTS
        return self._lanes[latency_class].counters.counter(name)

    def in_time_s(self, ticket: Ticket) -> float:
        """GPU seconds of its tenant's requests in its class that can still meet their targets."""
        order = self._lanes[ticket.latency_class].orders.get(self._tenant(ticket))
        return order.in_time_s if isinstance(order, TenantOrder) else 0.0

    def alone(self, entry: Entry) -> bool:
        """Whether no other tenant waits in its lane, or nothing there can be warm."""
        lane = self._lanes[entry.lane]
        return lane.size < 2 or not lane.chained or len(lane.orders) < 2

    def heads(self, lane: int, most: int) -> Iterator[Entry]:
        """The first requests of the tenants of a lane, the least served tenants first."""
        for order in islice(self._lanes[lane].tenants(), most):
            entry = order.first()
            entry.lane = lane
            yield entry

    def gap(self, entry: Entry, before: Entry) -> float:
        """Weighted tokens by which a request's tenant is ahead of the one of another request of its lane."""
        counters = self._lanes[entry.lane].counters
        return counters.counter(self._tenant(entry.ticket)) - counters.counter(self._tenant(before.ticket))

    def _line_up(self, entry: Entry) -> None:
        ticket, entry.place = entry.ticket, Place.DUE
        self._arrive(entry)
        self._lanes[ticket.latency_class].add(entry, self._tenant(ticket))
        if self._settings.aging and entry.overdue_s < inf:
            heappush(self._overdue, (entry.overdue_s, ticket.number))

    def _step_out(self, entry: Entry) -> None:
        tenant = self._tenant(entry.ticket)
        self._lanes[entry.ticket.latency_class].remove(entry, tenant)
        if entry.overdue:
            self._lanes[Lane.AGED].remove(entry, tenant)
            entry.overdue = False
        self._depart(entry)

    def _arrive(self, entry: Entry) -> None:
        """A tenant competes in a class while it waits there, and in the lane of overdue requests too."""
        ticket, tenant = entry.ticket, self._tenant(entry.ticket)
        for lane in (ticket.latency_class, Lane.AGED):
            competing = self._competing[lane]
            competing[tenant] = competing.get(tenant, 0) + 1
            self._lanes[lane].counters.wait(tenant, ticket.weight)

    def _depart(self, entry: Entry) -> None:
        tenant = self._tenant(entry.ticket)
        for lane in (entry.ticket.latency_class, Lane.AGED):
            competing = self._competing[lane]
            competing[tenant] -= 1
            if not competing[tenant]:
                del competing[tenant]
                self._lanes[lane].counters.idle(tenant)

    def _order(self) -> list[int]:
        waiting: list[int] = [lane for lane in LANES if self._lanes[lane].size]
        if len(waiting) < 2 or not self._settings.class_shares:
            return waiting
        return self._shares.order(waiting)

    def _tenant(self, ticket: Ticket) -> str:
        return ticket.tenant if self._settings.tenant_fairness else ALL_TENANTS

    def _counters(self, ticket: Ticket) -> Counters:
        return self._lanes[ticket.latency_class].counters

    def _count(self, entry: Entry, sign: int) -> None:
        ticket = entry.ticket
        self.prefill_tokens += sign * ticket.prefill_tokens
        (self.aside if entry.aside else self.held)[ticket.latency_class].add(entry, sign)
        tenants = self.tenants[ticket.latency_class]
        held = tenants.get(ticket.tenant)
        if held is None:
            held = tenants[ticket.tenant] = Held()
        held.add(entry, sign)
        if not held.requests:
            del tenants[ticket.tenant]

    def _age(self, now: float) -> None:
        """Gives what is overdue its second chance."""
        for _ in range(_MOVES):
            if not self._overdue or self._overdue[0][0] > now:
                return
            _, number = heappop(self._overdue)
            entry = self._entries.get(number)
            if entry is not None and not (entry.overdue or entry.aside) and entry.overdue_s <= now:
                entry.overdue = True
                self._lanes[Lane.AGED].add(entry, self._tenant(entry.ticket))

    def _entry(self, ticket: Ticket, prefill_s: float, cost_s: float) -> Entry:
        policy = self._settings.classes[ticket.latency_class]
        target_s = ticket.ttft_target_s or policy.ttft_s
        overdue_s = _overdue_s(ticket, policy)
        due_s = self._due_s(ticket, prefill_s, cost_s, target_s, overdue_s)
        return Entry(
            ticket=ticket,
            prefill_s=prefill_s,
            cost_s=cost_s,
            due_s=due_s,
            soon_s=min(due_s, self._soon_s(ticket, prefill_s, policy)),
            overdue_s=overdue_s,
            restore_s=self._restore_s(ticket, target_s),
            lane=ticket.latency_class,
        )

    def _due_s(
        self, ticket: Ticket, prefill_s: float, cost_s: float, target_s: float | None, overdue_s: float
    ) -> float:
        if not self._settings.effective_deadline:
            return ticket.arrival_s
        first_s = ticket.arrival_s + target_s - prefill_s if target_s is not None else inf
        last_s = ticket.deadline_s - cost_s if ticket.deadline_s is not None else inf
        due_s = min(first_s, last_s, overdue_s)
        return due_s if due_s < inf else ticket.arrival_s

    def _soon_s(self, ticket: Ticket, prefill_s: float, policy: ClassPolicy) -> float:
        promised_s = policy.ttft_s
        if promised_s is None or not (self._settings.effective_deadline and self._settings.short_first):
            return inf
        return ticket.arrival_s + _SOON_TARGETS * promised_s + _SOON_PREFILLS * prefill_s

    def _restore_s(self, ticket: Ticket, target_s: float | None) -> float | None:
        relegates = self._settings.relegation and self._settings.effective_deadline
        if not relegates or target_s is None:
            return None
        return ticket.arrival_s + self._settings.restore_after * target_s


def _overdue_s(ticket: Ticket, policy: ClassPolicy) -> float:
    if not policy.aging_s:
        return inf
    allowed_s = 0.0 if ticket.deadline_s in (None, inf) else ticket.deadline_s - ticket.arrival_s
    return ticket.arrival_s + max(policy.aging_s, policy.aging_deadline_share * allowed_s)
