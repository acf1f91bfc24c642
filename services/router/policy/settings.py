"""All parameters of the router's scheduling, and which parts of it are switched on.

Each part can be switched off on its own, so that a simulation can show what it is worth. New parameters need
a reason that an operator would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite, isnan

from services.router.policy.classify import LatencyClass
from services.router.policy.placement_settings import PlacementSettings

I, S, B = LatencyClass  # noqa: E741


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPolicy:
    """What a class is promised and how it is treated. Times in seconds."""

    share: float
    """Of GPU seconds while all classes wait, against the other classes' shares."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    aging_s: float = 0.0
    """A request that waited for so long gets a place beside its class's share; 0: never."""
    aging_deadline_share: float = 0.0
    """The same as a part of the time that it was given; the later of both counts."""
    patience_s: float = inf
    """Wait for a worker where none could ever run it."""
    refused_after_s: float = inf
    """Predicted time to the first token beyond which a request is refused."""


def _classes() -> dict[LatencyClass, ClassPolicy]:
    return {
        I: ClassPolicy(share=70.0, ttft_s=0.5, tpot_s=0.04, patience_s=5.0, refused_after_s=30.0),
        S: ClassPolicy(
            share=25.0, ttft_s=2.0, tpot_s=0.08, aging_s=10.0, patience_s=30.0, refused_after_s=120.0
        ),
        B: ClassPolicy(share=5.0, aging_s=600.0, aging_deadline_share=0.25),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Parameters of queue, admission, prediction and preemption; `validate` says what contradicts."""

    classes: Mapping[LatencyClass, ClassPolicy] = field(default_factory=_classes)

    class_shares: bool = True
    """Off: the most urgent class always goes first."""
    round_s: float = 1.0
    """GPU seconds that one round of all shares hands out."""
    aging: bool = True
    aging_share: float = 5.0
    """Of overdue requests, in addition to their classes' shares and in the same units."""

    tenant_fairness: bool = True
    """Off: all tenants are one."""
    prompt_weight: float = 1.0
    cached_weight: float = 0.1
    output_weight: float = 2.0
    lift: bool = True
    """Whether a tenant that comes back starts level with those that wait."""
    locality_credit_tokens: float = 32_768.0
    """Weighted tokens that a tenant may be ahead because its prompt is warm; 0: none."""

    effective_deadline: bool = True
    """Off: first come, first served within a tenant."""
    short_first: bool = True
    """Whether short requests go before long ones that are in time anyway."""
    relegation: bool = True
    restore_after: float = 2.0
    """A relegated request is back in its place at so many times its target."""
    restored_share: float = 0.1
    """Of its tenant's work, for what is back, while requests wait that can still meet their target."""
    pace: bool = True
    """Whether workers take only as many sequences as fit a token's target, where far more is asked for."""
    look_ahead: int = 32
    """Requests looked at behind one that cannot go."""
    tenant_look_ahead: int = 8
    """Of these, most of one tenant in one class."""

    tenant_queued_requests: int = 20_000
    tenant_queued_bytes: int = 64 << 20

    admission: bool = True
    sheddable_ramp: tuple[float, float] = (0.9, 1.1)
    """Head-room between which no sheddable request and every one is refused."""
    coming_limit: float = 0.93
    """Head-room that admitted work may be going to use: sheddable requests beyond are refused."""
    forecast: bool = True
    """Off: only the head-room used now counts."""
    fair_thinning: bool = True
    """Whether ramps take from those tenants that ask for more than their part; off: from all alike."""
    refuse_infeasible: bool = True

    shared_steps: bool = True
    """Whether the time that prompts take of decodes' steps counts as used head-room."""

    interactive_budget: bool = True
    budget_pressure: float = 0.5
    """Head-room used, of INTERACTIVE, beyond which budgets hold."""
    budget_window_s: float = 60.0

    learn_errors: bool = True
    """Whether predictions are corrected by how the last ones turned out."""

    preemption: bool = True
    preempt_after_s: float = 0.1
    """Wait of an INTERACTIVE request before another gives way."""
    residency_s: float = 1.0
    """Least time that a request has on a worker."""
    displacements: int = 1
    """How often one request gives way at most."""

    clear_for_starving: bool = True
    """Whether a request that never finds enough room goes where there is too little, long after it was
    overdue: its worker then lets nobody pass it."""

    placement: PlacementSettings = field(default_factory=PlacementSettings)

    def validate(self) -> list[str]:
        """What contradicts or cannot hold, one line each; empty when nothing does."""
        return [
            *self._class_faults(),
            *self._order_faults(),
            *self._number_faults(),
            *self._ramp_faults(),
            *(f"placement.{fault}" for fault in self.placement.validate()),
        ]

    @property
    def shares(self) -> dict[LatencyClass, float]:
        """Each class's part of the whole, 0 to 1."""
        total = sum(each.share for each in self.classes.values())
        return {name: each.share / total for name, each in self.classes.items()}

    def _class_faults(self) -> Iterator[str]:
        for name in self.classes:
            if not isinstance(name, LatencyClass):
                known = ", ".join(each.name for each in LatencyClass)
                yield f"classes: {name!r} is no class; there are {known}"
        for each in LatencyClass:
            if each not in self.classes:
                yield f"classes: {each.name} is missing"
        known = {name: policy for name, policy in self.classes.items() if isinstance(name, LatencyClass)}
        for name, policy in known.items():
            yield from _faults_of(name.name.lower(), policy)
        if known and all(policy.share == 0 for policy in known.values()):
            yield "share: at least one class needs more than 0"

    def _order_faults(self) -> Iterator[str]:
        """A less urgent class that is promised more than a more urgent one."""
        for what in ("ttft_s", "tpot_s", "aging_s"):
            found = [
                (name, getattr(self.classes[name], what)) for name in LatencyClass if name in self.classes
            ]
            found = [(name, value) for name, value in found if value]
            for (urgent, short), (other, long) in pairwise(found):
                if long < short:
                    yield (
                        f"{other.name.lower()}.{what}: {long:g} s is shorter than "
                        f"{urgent.name.lower()}'s {short:g} s, a more urgent class"
                    )

    def _number_faults(self) -> Iterator[str]:
        for name in ("prompt_weight", "cached_weight", "output_weight", "locality_credit_tokens"):
            yield from _unless(name, getattr(self, name), least=0.0)
        for name in ("coming_limit", "round_s", "aging_share", "restore_after", "budget_window_s"):
            yield from _unless(name, getattr(self, name), least=1e-6)
        for name in ("preempt_after_s", "residency_s", "displacements", "budget_pressure"):
            yield from _unless(name, getattr(self, name), least=0)
        for name in ("look_ahead", "tenant_look_ahead", "tenant_queued_requests", "tenant_queued_bytes"):
            yield from _unless(name, getattr(self, name), least=1)
        if self.prompt_weight == 0 and self.output_weight == 0:
            yield "prompt_weight, output_weight: one must be more than 0, or no tenant is ever charged"
        if self.cached_weight > self.prompt_weight:
            yield (
                f"cached_weight: {self.cached_weight:g} is more than prompt_weight {self.prompt_weight:g}: "
                "a cached token cannot cost more than a computed one"
            )
        if self.tenant_look_ahead > self.look_ahead:
            yield f"tenant_look_ahead: {self.tenant_look_ahead} is more than look_ahead {self.look_ahead}"
        if self.placement.short_slice == 1:
            yield "placement.short_slice: 1 leaves no sequence slot to requests that are not short"
        if not 0 <= self.restored_share <= 1:
            yield f"restored_share: must be from 0 to 1, not {self.restored_share:g}"
        if self.restore_after < 1:
            yield f"restore_after: {self.restore_after:g}: a request cannot be late before its target"

    def _ramp_faults(self) -> Iterator[str]:
        low, high = self.sheddable_ramp
        if not 0 <= low < high:
            yield f"sheddable_ramp: must rise from at least 0, not {low:g} to {high:g}"


def _faults_of(name: str, policy: ClassPolicy) -> Iterator[str]:
    yield from _unless(f"{name}.share", policy.share, least=0.0)
    yield from _unless(f"{name}.aging_s", policy.aging_s, least=0.0)
    yield from _unless(f"{name}.aging_deadline_share", policy.aging_deadline_share, least=0.0)
    if isnan(policy.patience_s) or policy.patience_s <= 0:
        yield f"{name}.patience_s: must be more than 0, not {policy.patience_s:g}"
    if policy.ttft_s is not None and not policy.refused_after_s >= policy.ttft_s:
        yield (
            f"{name}.refused_after_s: {policy.refused_after_s:g} s is shorter than "
            f"the target of {policy.ttft_s:g} s (ttft_s)"
        )
    for what in ("ttft_s", "tpot_s"):
        value = getattr(policy, what)
        if value is not None:
            yield from _unless(f"{name}.{what}", value, least=1e-6)
    if policy.ttft_s is not None and policy.tpot_s is not None and policy.tpot_s > policy.ttft_s:
        yield (
            f"{name}.tpot_s: {policy.tpot_s:g} s a token is longer than "
            f"the {policy.ttft_s:g} s until the first one (ttft_s)"
        )
    if policy.ttft_s is not None and 0 < policy.aging_s < policy.ttft_s:
        yield f"{name}.aging_s: {policy.aging_s:g} s ends before the target of {policy.ttft_s:g} s (ttft_s)"


def _unless(name: str, value: float, least: float) -> Iterator[str]:
    if not (isfinite(value) and value >= least):
        yield f"{name}: must be {'more than 0' if least == 1e-6 else f'at least {least:g}'}, not {value:g}"
