"""Who goes first, and what each class may take: the settings of the scheduler and the order they give.

May live here: pure functions of requests, settings and times. Not here: blocks, slots, steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from services.worker.scheduler.request import LatencyClass, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTargets:
    """Seconds; None where a class promises nothing."""

    ttft_s: float | None
    tpot_s: float | None


def _default_targets() -> dict[LatencyClass, ClassTargets]:
    return {
        LatencyClass.INTERACTIVE: ClassTargets(ttft_s=0.5, tpot_s=0.040),
        LatencyClass.STANDARD: ClassTargets(ttft_s=2.0, tpot_s=0.080),
        LatencyClass.BATCH: ClassTargets(ttft_s=None, tpot_s=None),
        LatencyClass.SYSTEM: ClassTargets(ttft_s=0.5, tpot_s=0.040),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Knobs of the scheduler; the defaults protect interactive work (research: policy A3)."""

    max_chunk: int = 8192  # most prompt tokens in a step
    min_chunk: int = (
        64  # prompt tokens that a step carries at least while somebody interactive waits for them
    )
    targets: dict[LatencyClass, ClassTargets] = field(default_factory=_default_targets)
    idle_step_s: float = 0.050  # longest step while nothing decodes, so that an arrival never waits long
    stretch: float = 2.0  # a target that decodes alone miss is replaced by this many times their step
    gate: float = 0.3  # no batch prefill while decodes alone take more than this part of the target
    batch_stretch: float = 2.5  # batch work lengthens decodes to at most this many times their step
    batch_fill: float = 0.9  # batch decodes join while the step stays under this part of what it may last
    batch_kv_share: float = 0.3  # most KV blocks that BATCH may hold while interactive work is about
    batch_kv_share_quiet: float = 0.6  # the same once none was seen for quiet_s
    quiet_s: float = 30.0
    batch_free_slots: int = 16  # slots that BATCH leaves free, at most a quarter of all
    standard_ageing_s: float = 10.0  # STANDARD rises one tier after so long without progress
    batch_ageing_s: float = 600.0  # BATCH rises after max(this, a quarter of the time to its deadline)
    max_preemptions: int = 3  # a victim is spared after so many
    credit_steps: float = 3.0  # prompt work that sessions may have waiting here, in the room of steps


LENGTHY = 2.0  # times a first token's target


class Place(NamedTuple):
    """Where a request stands in line; smaller goes first. Kept through preemption."""

    tier: int  # 0 interactive and probes, 1 standard, 2 batch; ageing lowers it
    due_s: float  # when its next token is due, counted from when it came here; without a target: then
    handle: int


_TIERS = {
    LatencyClass.SYSTEM: 0,
    LatencyClass.INTERACTIVE: 0,
    LatencyClass.STANDARD: 1,
    LatencyClass.BATCH: 2,
}


def place_of(
    request: Request, settings: SchedulerSettings, prefill_s: float, had_s: float, now: float
) -> Place:
    """The place of a request that comes now and whose uncached prompt takes `prefill_s` to compute.

    Routers have put requests in an order that knows of tenants: who waited there does not overtake here.
    A stream that lost its worker does: somebody reads along, and its next token is late already.
    `had_s`: what the request's tenant had of this worker lately.
    """
    target = tpot_target_s if len(request.delivered) else ttft_target_s
    due_s = now + had_s + (target(request, settings) or 0.0)
    if request.deadline_s is not None:
        due_s = min(due_s, request.deadline_s - prefill_s)
    return Place(_TIERS[request.latency_class], due_s, request.handle)


def is_lengthy(request: Request, settings: SchedulerSettings, prefill_s: float) -> bool:
    """Whether its uncached prompt alone takes far longer than a first token may: it may not keep others.

    That is the most urgent class's, whatever the prompt's own: it is others who notice. A caller that names a
    target of its own means all of its kind. Never of a stream that lost its worker, which routers move a few
    at a time.
    """
    target_s = request.ttft_target_s or settings.targets[LatencyClass.INTERACTIVE].ttft_s
    return target_s is not None and prefill_s > LENGTHY * target_s and not len(request.delivered)


def raised(place: Place) -> Place:
    """The same place one tier higher; among those it finds its arrival order by `due_s`."""
    return place._replace(tier=max(0, place.tier - 1))


def ageing_s(request: Request, settings: SchedulerSettings) -> float | None:
    """Seconds without progress after which a request rises one tier; None: it began at the top."""
    if request.latency_class is LatencyClass.STANDARD:
        return settings.standard_ageing_s
    if request.latency_class is LatencyClass.BATCH:
        allowed_s = 0.0 if request.deadline_s is None else request.deadline_s - request.arrival_s
        return max(settings.batch_ageing_s, 0.25 * allowed_s)
    return None


def ttft_target_s(request: Request, settings: SchedulerSettings) -> float | None:
    """The request's own target, else its class's."""
    if request.ttft_target_s is not None:
        return request.ttft_target_s
    return settings.targets[request.latency_class].ttft_s


def tpot_target_s(request: Request, settings: SchedulerSettings) -> float | None:
    """The request's own target, else its class's."""
    if request.tpot_target_s is not None:
        return request.tpot_target_s
    return settings.targets[request.latency_class].tpot_s
