"""Who is let in while the mesh is busy: a ramp on head-room sheds what may be shed, everything else waits.

    do_not_queue      refused unless it can start at once
    deadline          refused at once where it cannot be met
    tenant's queue    bounded in requests and in bytes
    sheddable         p = clamp((x - low) / (high - low))       x: head-room used, 1 at the targets
                      or so many that what comes is within its limit (inflow.py); the larger p counts
    the others        only when the predicted first token is further away than anybody waits
    BATCH             waits until its deadline

Requests that may not be shed are not refused for missing their targets: on a device that is too slow for
these, all would be. Those that cannot make it stand behind those that can (queue/order.py).

A ramp takes from tenants what they ask for beyond their part: who asks for little is not shed for another's
sake. Which requests it takes is not random but evenly spread over their numbers (multiples of the golden
ratio), so that no burst is refused as a whole and a simulation repeats.

Admitted requests live for many seconds: head-room used says too late that too many were let in, unless its
ramp begins so low that work is shed which there is room for. So it stands about the targets, and what is
coming sheds before.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from services.router.policy.classify import LatencyClass
from services.router.policy.demand import FairThinning
from services.router.policy.inflow import Offered
from services.router.policy.prediction import Prediction
from services.router.policy.settings import PolicySettings
from services.router.policy.ticket import Ticket

_GOLDEN = 0.6180339887498949
_RETRY_S = (0.1, 60.0)
NO_WORKER_RETRY_S = 1.0


class RefusalKind(Enum):
    """Why a request was refused; values are the reasons of the wire."""

    OVERLOADED = "OVERLOADED"
    SHED = "SHED"
    DEADLINE_INFEASIBLE = "DEADLINE_INFEASIBLE"
    WOULD_QUEUE = "WOULD_QUEUE"
    TENANT_QUEUE_FULL = "TENANT_QUEUE_FULL"
    NO_WORKER = "NO_WORKER"


class Refusal(NamedTuple):
    """A request that is not let in."""

    kind: RefusalKind
    message: str
    """A sentence for the caller."""
    retry_s: float | None
    """When trying again makes sense, in seconds from now; None: it never does."""


class QueueLimits(NamedTuple):
    """What one tenant may have waiting."""

    requests: int
    bytes: int


class Outlook(NamedTuple):
    """The situation that a request comes into."""

    workers: bool
    """Whether a worker is there that could run it."""
    opening: bool
    """Whether it could start at once."""
    headroom: float
    """Used, of its class; as the next only of a request that may be shed."""
    coming: float
    """The same that admitted work is going to use."""
    predict: Callable[[], Prediction | None]
    """To be asked of what cannot start at once or is refused; None where no worker could run it."""
    queue_s: float
    """Its wait if the queue goes on as it does; as the next only of a request with a deadline."""
    lone_s: float
    """The least that it takes on an idle pool."""
    lone_first_s: float
    """The same until its first token."""
    cost_s: float
    """GPU seconds that it is thought to take."""
    tenant_requests: int
    tenant_bytes: int


class Thinning:
    """What the ramp takes of sheddable requests, fairly by tenant."""

    def __init__(self, settings: PolicySettings) -> None:
        self._fair = settings.fair_thinning
        self._shares = FairThinning(settings.budget_window_s)
        self._offered = Offered()

    def sheds(self, ticket: Ticket, outlook: Outlook, settings: PolicySettings, now: float) -> bool:
        """Whether a request is refused because it may be; counts it."""
        shed = ticket.sheddable and self.takes(ticket, outlook.cost_s, self._share(outlook, settings), now)
        self._offered.count(outlook.cost_s, now, sheddable=ticket.sheddable, shed=shed)
        return shed

    def takes(self, ticket: Ticket, cost_s: float, share: float, now: float) -> bool:
        """Whether a request is among those to refuse where the ramp refuses this share of all work."""
        own = self._shares.share(ticket.tenant, ticket.weight, cost_s, share, now)
        return thinned(ticket.number, own if self._fair else share)

    def _share(self, outlook: Outlook, settings: PolicySettings) -> float:
        """Of all sheddable work, what is to be refused."""
        share = _ramp(outlook.headroom, settings.sheddable_ramp)
        if not settings.forecast:
            return share
        return max(share, self._offered.beyond(outlook.coming, settings.coming_limit))


def admit(
    ticket: Ticket,
    outlook: Outlook,
    settings: PolicySettings,
    limits: QueueLimits,
    now: float,
    thinning: Thinning | None = None,
) -> Refusal | None:
    """Why a request is refused, or None. `thinning` remembers who asked for how much; None: nobody did."""
    refusal = _full(ticket, outlook, limits) or _hasty(ticket, outlook)
    if refusal is None and settings.refuse_infeasible:
        refusal = _infeasible(ticket, outlook, now)
    if refusal is None and settings.admission:
        refusal = _busy(ticket, outlook, settings, thinning or Thinning(settings), now)
    return refusal


def part_full(own: float, free: float) -> bool:
    """Whether a tenant that has so much waiting may have no more, where so much is free for all.

    Nobody has more than is left to the others, so that no flood keeps anybody out. Source: Choudhury and
    Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998.
    """
    return own >= free


def thinned(number: int, share: float) -> bool:
    """Whether a request is among the share to refuse: of any run of numbers very nearly that share is."""
    return (number * _GOLDEN) % 1.0 < share


def clamp01(value: float) -> float:
    """The value, at least 0 and at most 1."""
    return min(max(value, 0.0), 1.0)


def _full(ticket: Ticket, outlook: Outlook, limits: QueueLimits) -> Refusal | None:
    if outlook.tenant_requests >= limits.requests:
        what = f"{limits.requests} requests of a tenant may wait"
    elif outlook.tenant_requests and outlook.tenant_bytes + ticket.queued_bytes > limits.bytes:
        what = f"{limits.bytes} bytes of a tenant's requests may wait"
    else:
        return None
    return Refusal(RefusalKind.TENANT_QUEUE_FULL, what, _retry_s(outlook))


def _hasty(ticket: Ticket, outlook: Outlook) -> Refusal | None:
    if not ticket.do_not_queue or outlook.opening:
        return None
    if not outlook.workers:
        return Refusal(RefusalKind.NO_WORKER, ticket.unserved, NO_WORKER_RETRY_S)
    message = "the request cannot start now and was not to wait"
    return Refusal(RefusalKind.WOULD_QUEUE, message, _retry_s(outlook))


def _infeasible(ticket: Ticket, outlook: Outlook, now: float) -> Refusal | None:
    if ticket.deadline_s is None or not outlook.workers:
        return None
    left_s = ticket.deadline_s - now
    needed_s = outlook.lone_s
    if not outlook.opening:
        needed_s += max(_wait_s(outlook), outlook.queue_s)
    if needed_s <= left_s:
        return None
    message = f"it would take about {_spoken(needed_s)} and has {_spoken(max(left_s, 0.0))}"
    allowed_s = ticket.deadline_s - ticket.arrival_s
    retry_s = _in_bounds(needed_s - allowed_s) if outlook.lone_s <= allowed_s else None
    return Refusal(RefusalKind.DEADLINE_INFEASIBLE, message, retry_s)


def _busy(
    ticket: Ticket, outlook: Outlook, settings: PolicySettings, thinning: Thinning, now: float
) -> Refusal | None:
    if not outlook.workers or ticket.latency_class is LatencyClass.BATCH:
        return None
    if thinning.sheds(ticket, outlook, settings, now):
        used = max(outlook.headroom, outlook.coming)
        message = f"the mesh is busy ({used:.2f} of its head-room), and the request is sheddable"
        return Refusal(RefusalKind.SHED, message, _retry_s(outlook))
    if not _hopeless(ticket, outlook, settings):
        return None
    return Refusal(RefusalKind.OVERLOADED, _overload(ticket, outlook), _retry_s(outlook))


def _ramp(used: float, ramp: tuple[float, float]) -> float:
    low, high = ramp
    return clamp01((used - low) / (high - low))


def _hopeless(ticket: Ticket, outlook: Outlook, settings: PolicySettings) -> bool:
    if outlook.opening:
        return False
    bound_s = max(settings.classes[ticket.latency_class].refused_after_s, 2 * outlook.lone_first_s)
    return _first_s(outlook) > bound_s


def _overload(ticket: Ticket, outlook: Outlook) -> str:
    return (
        f"the mesh is too busy for class {ticket.latency_class.name}: "
        f"the first token would come after about {_first_s(outlook):.1f} s"
    )


def _retry_s(outlook: Outlook) -> float:
    """When what waits now will have been served."""
    return _in_bounds(_wait_s(outlook))


def _wait_s(outlook: Outlook) -> float:
    prediction = outlook.predict()
    return NO_WORKER_RETRY_S if prediction is None else prediction.wait_s


def _first_s(outlook: Outlook) -> float:
    prediction = outlook.predict()
    return 0.0 if prediction is None else prediction.ttft_s


def _spoken(duration_s: float) -> str:
    """A duration as one says it: milliseconds below a second."""
    return f"{duration_s:.3g} s" if duration_s >= 1.0 else f"{1000.0 * duration_s:.3g} ms"


def _in_bounds(retry_s: float) -> float:
    least, most = _RETRY_S
    return min(max(retry_s, least), most)
