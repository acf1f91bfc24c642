"""What the scheduler knows of a request: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.router.policy.classify import LatencyClass

Digests = npt.NDArray[np.uint64]
"""First 16 bytes of each block digest of a prompt, as two words. [blocks, 2]"""
NO_CHAINS: Mapping[bytes, Digests] = MappingProxyType({})

LAST_WORD_S = 0.75
"""Before its deadline a request for which nobody is there is told so; of a short time the last quarter."""


class Cost(NamedTuple):
    """What a request takes of a worker's credit."""

    prefill_tokens: int
    sequences: int
    kv_blocks: int


@dataclass(slots=True, kw_only=True)
class Ticket:
    """A request that waits; nobody writes to it. Times are seconds of the dispatcher's clock.

    It is made for every request, and making a frozen one takes four times as long.
    """

    number: int
    model: str
    tenant: str
    latency_class: LatencyClass
    cost: Cost
    """Prefill tokens as if nothing were cached; an assignment carries what is not."""
    total_tokens: int
    """Most tokens of prompt and output together."""
    arrival_s: float
    """Kept when a request comes back: it waits at its old place."""
    deadline_s: float | None = None
    labels: frozenset[tuple[str, str]] = frozenset()
    preferred_labels: frozenset[tuple[str, str]] = frozenset()
    capabilities: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    """Workers that said they can never run it."""
    weight: float = 1.0
    """Of the tenant, against others."""
    interactive_share: float | None = None
    """Most of the pool's GPU seconds that its tenant may have as INTERACTIVE; None: its part by weight."""
    expected_output: int = 1
    """Output tokens that are still expected."""
    output_known: bool = False
    """Whether the tenant's history says so, not only a default."""
    chains: Mapping[bytes, Digests] = field(default_factory=lambda: NO_CHAINS, compare=False, repr=False)
    """Digests of the prompt's whole blocks by numerics id; empty: nothing may be reused."""
    sheddable: bool = False
    """May be refused first."""
    do_not_queue: bool = False
    """Is to be refused when it cannot start at once."""
    ttft_target_s: float | None = None
    tpot_target_s: float | None = None
    queued_bytes: int = 0
    """Memory that it holds while it waits."""
    foreground: bool = field(init=False, compare=False, repr=False)
    """Whether batch work gives way to it in a worker."""
    prefill_tokens: int = field(init=False, compare=False, repr=False)
    """Prompt tokens (and output to compute again) as if nothing were cached."""

    def __post_init__(self) -> None:
        self.foreground = self.latency_class is not LatencyClass.BATCH
        self.prefill_tokens = self.cost.prefill_tokens

    @property
    def unserved(self) -> str:
        """What its caller is told where no worker can run it: all that a worker needs to have for it."""
        labels = [f"the label {name}={value}" for name, value in sorted(self.labels)]
        capabilities = [f"the capability {name}" for name in sorted(self.capabilities)]
        needed = ", ".join((f"room for {self.total_tokens} tokens", *labels, *capabilities))
        return f"no worker is there that can run this request of model {self.model!r}: it needs {needed}"

    @property
    def last_word_s(self) -> float:
        """When its caller must be told at the latest that nobody is there for it."""
        if self.deadline_s is None:
            return inf
        return self.deadline_s - min(LAST_WORD_S, (self.deadline_s - self.arrival_s) / 4)
