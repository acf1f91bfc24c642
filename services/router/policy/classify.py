"""The class of a request that names none (DESIGN §2), the cap of its tenant, and its shape."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, IntEnum
from typing import NamedTuple

INTERACTIVE_DEADLINE_S = 15.0
BATCH_DEADLINE_S = 600.0
_HISTORY_WEIGHT = 0.1
_HISTORIES = 4096
UNKNOWN_OUTPUT = 256
"""Output tokens expected of a tenant that has no history."""


class LatencyClass(IntEnum):
    """Numbers are those of the wire contract; a smaller number is more urgent."""

    INTERACTIVE = 1
    STANDARD = 2
    BATCH = 3


class ClassReason(Enum):
    """Why a request runs in its class; values are the names of the wire."""

    ASKED = "ASKED"
    INFERRED = "INFERRED"
    CAPPED = "CAPPED"
    """A more urgent one was named or inferred than the tenant may use."""
    OVER_BUDGET = "OVER_BUDGET"
    """The tenant's interactive budget was used up while others wanted theirs."""


class Verdict(NamedTuple):
    """The class to run in, and why."""

    latency_class: LatencyClass
    reason: ClassReason

    def over_budget(self) -> Verdict:
        """The same request beyond its tenant's interactive budget."""
        return Verdict(LatencyClass.STANDARD, ClassReason.OVER_BUDGET)


def classify(
    asked: LatencyClass | None, *, streaming: bool, deadline_s: float | None, most_urgent: LatencyClass
) -> Verdict:
    """The class to run in. `deadline_s`: seconds that are left; `most_urgent`: the tenant's cap.

    Budgets are looked at later, when the request's cost is known: `Scheduler.within_budget`.
    """
    wanted = asked or _inferred(streaming, deadline_s)
    if wanted < most_urgent:
        return Verdict(most_urgent, ClassReason.CAPPED)
    return Verdict(wanted, ClassReason.INFERRED if asked is None else ClassReason.ASKED)


def log2_bucket(count: int) -> int:
    """Bucket b holds [2^b, 2^(b+1)); 0 counts as 1."""
    return max(count, 1).bit_length() - 1


class OutputHistory:
    """How long answers were lately, by tenant, model and class; forgets who has not asked for long."""

    def __init__(self) -> None:
        self._mean: OrderedDict[tuple[str, str, LatencyClass], float] = OrderedDict()

    def expect(self, tenant: str, model: str, latency_class: LatencyClass, max_tokens: int) -> int:
        """Output tokens expected, 1 to `max_tokens`; of other tenants' answers nothing is learnt."""
        mean = self._mean.get((tenant, model, latency_class), float(UNKNOWN_OUTPUT))
        return max(1, min(max_tokens, round(mean)))

    def knows(self, tenant: str, model: str, latency_class: LatencyClass) -> bool:
        """Whether there is a history to expect from."""
        return (tenant, model, latency_class) in self._mean

    def record(self, tenant: str, model: str, latency_class: LatencyClass, output_tokens: int) -> None:
        """Takes the length of an answer into account."""
        key = (tenant, model, latency_class)
        mean = self._mean.pop(key, float(output_tokens))
        self._mean[key] = mean + _HISTORY_WEIGHT * (output_tokens - mean)
        if len(self._mean) > _HISTORIES:
            self._mean.popitem(last=False)


def _inferred(streaming: bool, deadline_s: float | None) -> LatencyClass:
    if streaming or (deadline_s is not None and deadline_s < INTERACTIVE_DEADLINE_S):
        return LatencyClass.INTERACTIVE
    if deadline_s is not None and deadline_s > BATCH_DEADLINE_S:
        return LatencyClass.BATCH
    return LatencyClass.STANDARD
