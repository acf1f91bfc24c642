"""One request as it was accepted: what does not change while it waits, runs, moves and ends."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from headrace.v1 import types_pb2

from services.common.scope import ScopeKeys
from services.router.policy import Cost, LatencyClass, Ticket

BLOCK_TOKENS = 64
WIRE_CLASS = {
    LatencyClass.INTERACTIVE: types_pb2.LATENCY_CLASS_INTERACTIVE,
    LatencyClass.STANDARD: types_pb2.LATENCY_CLASS_STANDARD,
    LatencyClass.BATCH: types_pb2.LATENCY_CLASS_BATCH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
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

    def ticket(self, delivered: int, barred: frozenset[str]) -> Ticket:
        """What the scheduler needs to know, with `delivered` output tokens to compute again."""
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
            capabilities=self.capabilities,
            barred=barred,
        )
