"""What the scheduler knows of a request: values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from services.router.policy.classify import LatencyClass


class Cost(NamedTuple):
    """What a request takes of a worker's credit."""

    prefill_tokens: int
    sequences: int
    kv_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A request that waits. Times are seconds of the dispatcher's clock."""

    number: int
    model: str
    tenant: str
    latency_class: LatencyClass
    cost: Cost
    total_tokens: int
    """Most tokens of prompt and output together."""
    arrival_s: float
    """Kept when a request comes back: it waits at its old place."""
    deadline_s: float | None = None
    labels: frozenset[tuple[str, str]] = frozenset()
    capabilities: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    """Workers that said they can never run it."""
