"""How long a request waits if the queue goes on as it does: what decides whether a deadline can be met.

The waits of those that went say too little: where more is asked for than can be served, those go that went
soon, and those that wait until their deadline are never heard of. So work is counted. A rate is in estimated
GPU seconds that leave the queue a second, while others of the class wait.

    in time   what is ahead and in time as well / rate of the class     while that meets its target
    late      all of the class / rate of its late requests              beyond: it stands behind (order.py)
"""

from __future__ import annotations

from services.router.policy.queue import ModelQueue
from services.router.policy.ticket import Ticket

_LEARNING = 0.05
_SURE = 0.5
"""Of the time that is left: who is to start later may as well turn out late."""
_LEAST_SEEN = 20
"""Dispatches before a rate is known."""


class Rate:
    """GPU seconds that leave a queue a second, while it is not empty."""

    def __init__(self) -> None:
        self._cost_s = 0.0
        self._gap_s = 0.0
        self._seen = 0
        self._since_s: float | None = None

    def went(self, cost_s: float, now: float, *, others_wait: bool) -> None:
        """A request left; `others_wait`: so that the gap until the next tells how fast it drains."""
        if self._since_s is not None:
            learning = max(_LEARNING, 1.0 / (self._seen + 1))
            self._cost_s += learning * (cost_s - self._cost_s)
            self._gap_s += learning * (max(0.0, now - self._since_s) - self._gap_s)
            self._seen += 1
        self._since_s = now if others_wait else None

    def value(self) -> float | None:
        """None while too few have left."""
        return self._cost_s / max(self._gap_s, 1e-6) if self._seen >= _LEAST_SEEN else None


class Drain:
    """The rates of one class of a model's queue."""

    def __init__(self) -> None:
        self._all, self._late = Rate(), Rate()

    def went(self, cost_s: float, now: float, *, late: bool, others_wait: bool) -> None:
        """A request left the queue for a worker."""
        self._all.went(cost_s, now, others_wait=others_wait)
        if late:
            self._late.went(cost_s, now, others_wait=others_wait)

    def wait_s(self, ticket: Ticket, queue: ModelQueue, usual: float, in_time_s: float | None) -> float:
        """Until a request that is queued now leaves the queue.

        Args:
            usual: the rate that counts until one is known.
            in_time_s: how long it may wait and still meet its target; None: it has none.
        """
        held, tenants = queue.held[ticket.latency_class], queue.tenants[ticket.latency_class]
        own = tenants.get(ticket.tenant)
        if own is None:
            return 0.0
        rate = self._all.value() or usual
        if in_time_s is not None:
            first_s = min(queue.in_time_s(ticket) * len(tenants), held.cost_s) / rate
            if first_s <= _SURE * in_time_s:
                return first_s
            rate = self._late.value() or rate
        return min(held.cost_s, own.cost_s * len(tenants)) / rate
