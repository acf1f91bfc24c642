"""How long a request waits if the queue goes on as it does: what decides whether a deadline can be met.

The waits of those that went say too little: where more is asked for than can be served, those go that went
soon, and those that wait until their deadline are never heard of. So work is counted. A rate is in estimated
GPU seconds that leave the queue a second, while others of the class wait.

    in time   what is ahead and in time as well / rate of the class     while that meets its target
    late      all of the class / rate of its late requests              beyond: it stands behind (order.py)
    between   from the one to the other                                 where over half of its time goes

Until that is seen late requests are thought to go as fast as all: after a burst at an idle mesh nobody need
come who goes before them.
"""

from __future__ import annotations

from math import exp

from services.router.policy.queue import ModelQueue
from services.router.policy.ticket import Ticket

_SURE = 0.5
"""Of the time that is left: who is to start later may turn out late, surely so when nothing is left."""
_FADING_S = 20.0
"""What was seen so long ago counts a third: an outage is forgotten, whether or not anybody waits after it."""
_PRIOR_S = 1.0
"""Seconds for which the rate that is usual counts as seen, and after which late requests' own does."""


class Rate:
    """GPU seconds that leave a queue a second, while it is not empty; what was seen fades."""

    def __init__(self) -> None:
        self._cost_s = self._late_cost_s = self._busy_s = 0.0
        self._at_s: float | None = None
        self._busy = False

    def went(self, cost_s: float, now: float, *, late: bool = False, others_wait: bool) -> None:
        """A request left; `others_wait`: so that the time until the next tells how fast it drains."""
        self._look(now)
        if self._busy:
            self._cost_s += cost_s
            self._late_cost_s += cost_s * late
        self._busy = others_wait

    def of_all(self, usual: float, now: float) -> float:
        """Of all requests. `usual`: what is expected before anything was seen."""
        self._look(now)
        return (self._cost_s + usual * _PRIOR_S) / (self._busy_s + _PRIOR_S)

    def of_late(self, usual: float, now: float, least: float) -> float:
        """Of those that are late; `least`: their part of all at least."""
        rate = self.of_all(usual, now)
        seen = max(self._late_cost_s / (self._busy_s + _PRIOR_S), least * rate)
        unseen = exp(-self._busy_s / _PRIOR_S)
        return unseen * rate + (1.0 - unseen) * seen

    def _look(self, now: float) -> None:
        passed_s = max(0.0, now - self._at_s) if self._at_s is not None else 0.0
        kept = exp(-passed_s / _FADING_S)
        self._cost_s *= kept
        self._late_cost_s *= kept
        self._busy_s = kept * self._busy_s + (1.0 - kept) * _FADING_S * self._busy
        self._at_s = now if self._at_s is None else max(now, self._at_s)


class Drain:
    """How one class of a model's queue drains."""

    def __init__(self, restored_share: float) -> None:
        """`restored_share`: that requests which are late have at least while others wait."""
        self._rate, self._restored_share = Rate(), restored_share

    def went(self, cost_s: float, now: float, *, late: bool, others_wait: bool) -> None:
        """A request left the queue for a worker."""
        self._rate.went(cost_s, now, late=late, others_wait=others_wait)

    def wait_s(
        self, ticket: Ticket, queue: ModelQueue, now: float, usual: float, in_time_s: float | None
    ) -> float:
        """Until a request that is queued now leaves the queue.

        Args:
            usual: the rate that is expected before one was seen.
            in_time_s: how long it may wait and still meet its target; None: it has none.
        """
        held, tenants = queue.held[ticket.latency_class], queue.tenants[ticket.latency_class]
        own = tenants.get(ticket.tenant)
        if own is None:
            return 0.0
        all_s = min(held.cost_s, own.cost_s * len(tenants))
        rate = self._rate.of_all(usual, now)
        if in_time_s is None:
            return all_s / rate
        first_s = min(queue.in_time_s(ticket) * len(tenants), held.cost_s) / rate
        late = _part(first_s, _SURE * in_time_s, in_time_s)
        if not late:
            return first_s
        late_s = max(first_s, all_s / self._rate.of_late(usual, now, self._restored_share))
        return (1.0 - late) * first_s + late * late_s


def _part(value: float, first: float, last: float) -> float:
    """Of the way from the first to the last, from 0 to 1."""
    return min(max((value - first) / max(last - first, 1e-9), 0.0), 1.0) if value > first else 0.0
