"""One request as it was accepted: what does not change while it waits, runs, moves and ends."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from headrace.v1 import types_pb2

from services.common.scope import ScopeKeys
from services.router.policy import Cost, LatencyClass, Ticket
from services.router.policy.classify import ClassReason
from services.router.policy.ticket import NO_CHAINS, Digests

BLOCK_TOKENS = 64
ORDER_BYTES = 4096
"""Of an order without its ids, in memory: a round upper bound."""
WIRE_CLASS = {
    LatencyClass.INTERACTIVE: types_pb2.LATENCY_CLASS_INTERACTIVE,
    LatencyClass.STANDARD: types_pb2.LATENCY_CLASS_STANDARD,
    LatencyClass.BATCH: types_pb2.LATENCY_CLASS_BATCH,
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request that is ready to run. Times are seconds of the monotonic clock."""

    number: int
    request_id: str
    tenant: str
    tenant_tag: bytes
    model: str
    prompt_ids: array[int]
    max_tokens: int
    sampling: types_pb2.SamplingParams
    """Complete: defaults filled in, the seed set."""
    grammar: types_pb2.Grammar | None
    stops: tuple[str, ...]
    latency_class: LatencyClass
    arrival_s: float
    deadline_s: float | None
    ttft_target_s: float | None
    tpot_target_s: float | None
    expected_output: int
    scope: ScopeKeys | None
    """Whose KV may be reused; None: nothing is."""
    labels: frozenset[tuple[str, str]]
    capabilities: frozenset[str]
    end_ids: frozenset[int]
    """Ids that end a turn: delivered, but no text."""
    encode_s: float
    traceparent: str
    asked_class: LatencyClass | None = None
    class_reason: ClassReason = ClassReason.ASKED
    preferred_labels: frozenset[tuple[str, str]] = frozenset()
    weight: float = 1.0
    """Of the tenant, against others."""
    interactive_share: float | None = None
    """Of the pool's GPU seconds, that the tenant may have as INTERACTIVE."""
    output_known: bool = False
    """Whether `expected_output` comes from the tenant's history."""
    sheddable: bool = False
    wait: bool = True
    chains: Mapping[bytes, Digests] = field(default_factory=lambda: NO_CHAINS, compare=False, repr=False)
    """Names of the prompt's blocks by kind of worker."""

    def demoted(
        self, latency_class: LatencyClass, reason: ClassReason, targets: tuple[float | None, float | None]
    ) -> Order:
        """The same request in another class."""
        ttft_s, tpot_s = targets
        return replace(
            self,
            latency_class=latency_class,
            class_reason=reason,
            ttft_target_s=ttft_s,
            tpot_target_s=tpot_s,
        )

    @cached_property
    def first_ticket(self) -> Ticket:
        """What the scheduler needs to know while it has not begun anywhere."""
        return self.ticket(0, frozenset())

    def ticket(
        self,
        delivered: int,
        barred: frozenset[str],
        chains: Mapping[bytes, Digests] | None = None,
        alike: frozenset[tuple[str, str]] = frozenset(),
    ) -> Ticket:
        """What the scheduler needs to know, with `delivered` output tokens to compute again.

        `chains` are those of the prompt with what was delivered, where they are more than the prompt's;
        `alike`: labels of workers that would go on with it bit by bit.
        """
        again = len(self.prompt_ids) + delivered
        blocks = -(-(len(self.prompt_ids) + max(self.expected_output, delivered + 1)) // BLOCK_TOKENS)
        return Ticket(
            number=self.number,
            model=self.model,
            tenant=self.tenant,
            latency_class=self.latency_class,
            cost=Cost(again, 1, blocks),
            total_tokens=len(self.prompt_ids) + self.max_tokens,
            arrival_s=self.arrival_s,
            deadline_s=self.deadline_s,
            labels=self.labels,
            preferred_labels=self.preferred_labels | alike,
            capabilities=self.capabilities,
            barred=barred,
            weight=self.weight,
            interactive_share=self.interactive_share,
            expected_output=max(1, self.expected_output - delivered),
            output_known=self.output_known,
            chains=self.chains if chains is None else chains,
            sheddable=self.sheddable,
            do_not_queue=not self.wait,
            ttft_target_s=self.ttft_target_s,
            tpot_target_s=self.tpot_target_s,
            queued_bytes=self._bytes(),
        )

    def _bytes(self) -> int:
        """Memory that it holds while it waits."""
        return ORDER_BYTES + 4 * len(self.prompt_ids) + sum(each.nbytes for each in self.chains.values())
