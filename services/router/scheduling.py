"""The scheduler's parameters from what the router was told, and its refusals as errors of the tree."""

from __future__ import annotations

import re
from math import inf

from services.common import errors
from services.common.errors import HeadraceError
from services.common.identity import Tenant
from services.common.settings import SettingsError, variable
from services.router.class_settings import ClassSettings
from services.router.policy import (
    ClassPolicy,
    LatencyClass,
    PolicySettings,
    QueueLimits,
    Refusal,
    RefusalKind,
)
from services.router.policy.placement_settings import PlacementSettings
from services.router.settings import RouterSettings, SchedulingSettings

_ERRORS: dict[RefusalKind, type[HeadraceError]] = {
    RefusalKind.OVERLOADED: errors.Overloaded,
    RefusalKind.SHED: errors.Overloaded,
    RefusalKind.WOULD_QUEUE: errors.Overloaded,
    RefusalKind.DEADLINE_INFEASIBLE: errors.DeadlineInfeasible,
    RefusalKind.TENANT_QUEUE_FULL: errors.QuotaExceeded,
    RefusalKind.NO_WORKER: errors.Unavailable,
}


def policy_settings(settings: RouterSettings) -> PolicySettings:
    """What the scheduler is to do. Raises SettingsError: one line for each contradiction."""
    told = settings.scheduling
    found = PolicySettings(
        classes={name: _class_policy(name, each) for name, each in settings.classes.items()},
        placement=_placement(told),
        prompt_weight=told.prompt_weight,
        cached_weight=told.cached_weight,
        output_weight=told.output_weight,
        locality_credit_tokens=told.locality_credit_tokens,
        admission=told.admission,
        sheddable_ramp=told.sheddable_ramp,
        refuse_infeasible=told.refuse_infeasible,
        interactive_budget=told.interactive_budget,
        budget_window_s=told.budget_window_s,
        preemption=told.preemption,
        preempt_after_s=told.preempt_after_s,
    )
    faults = found.validate()
    if faults:
        raise SettingsError("\n".join(f"{_setting(settings, fault)}: {fault}" for fault in faults))
    return found


def queue_limits(tenant: Tenant) -> QueueLimits:
    """What a tenant may have waiting."""
    return QueueLimits(tenant.queued_requests, tenant.queued_bytes)


def refused(refusal: Refusal) -> HeadraceError:
    """The error that says it."""
    return _ERRORS[refusal.kind](refusal.message, reason=refusal.kind.value, retry_s=refusal.retry_s)


def targets(settings: ClassSettings, name: LatencyClass, tenant: Tenant) -> tuple[float | None, float | None]:
    """Times to the first token and between tokens that a tenant's requests of a class are to have."""
    own = {LatencyClass.INTERACTIVE: tenant.interactive, LatencyClass.STANDARD: tenant.standard}.get(name)
    if own is None:
        return settings.ttft_s, settings.tpot_s
    return own.ttft_s or settings.ttft_s, own.tpot_s or settings.tpot_s


def _class_policy(name: LatencyClass, told: ClassSettings) -> ClassPolicy:
    return ClassPolicy(
        share=told.share,
        ttft_s=told.ttft_s,
        tpot_s=told.tpot_s,
        aging_s=told.aging_s,
        aging_deadline_share=PolicySettings().classes[name].aging_deadline_share,
        patience_s=told.patience_s or inf,
        refused_after_s=told.refused_after_s or inf,
    )


def _placement(told: SchedulingSettings) -> PlacementSettings:
    return PlacementSettings(warm_share=told.warm_share, short_slice=told.short_slice)


def _setting(settings: RouterSettings, fault: str) -> str:
    """The variable that a fault is about: of the classes that it names, those that somebody has set."""
    named = [name.name.lower() for name in settings.classes if re.search(rf"\b{name.name.lower()}\b", fault)]
    chosen = [name for name in named if name in settings.model_fields_set] or named[:1] or ["scheduling"]
    return ", ".join(variable(RouterSettings, name) for name in chosen)
