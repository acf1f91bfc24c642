"""What a router counts. Per-token counts are plain array increments, summed up when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.common.metrics import LATENCY_BUCKETS_S, RpcMetrics, from_zero
from services.common.tallies import Level, Spreads, Tallies
from services.router.policy import Assignment, LatencyClass, Refusal
from services.router.policy.classify import ClassReason

if TYPE_CHECKING:
    from services.router.relay.flight import Flight
    from services.router.relay.order import Order

RATIO_BUCKETS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
GRAIN_S = 0.02
BadFrame = Literal[
    "absurd_acknowledgement",
    "absurd_credit",
    "absurd_load",
    "absurd_step_model",
    "claimed",
    "duplicate_frame",
    "frame_gap",
    "index_gap",
    "kv_news",
    "other_attempt",
    "served",
    "torn_columns",
    "unanswered_cancel",
    "unknown_slot",
    "unreadable",
]
"""What a worker can send against the protocol."""
TakenUp = Literal["adopted", "ended", "again", "nothing"]
"""How a stream goes on that another call had begun."""
CLASS_LABEL = {each: each.name.lower() for each in LatencyClass}
REASON_LABEL = {each: each.value.lower() for each in ClassReason}


class Gap(NamedTuple):
    """Time between a request's output tokens."""

    latency_class: LatencyClass
    before_s: float
    """When the token before them came."""
    tokens: int
    """That came together."""


class RouterMetrics:
    """All metrics of one router process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rpc = RpcMetrics(registry)
        self.queue_depth = Gauge("headrace_queue_depth", "Requests that wait", ["class"], registry=registry)
        self.queue_seconds = Spreads(
            "headrace_queue_seconds",
            "Wait in the router for a worker",
            ["class"],
            registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self.prediction = Spreads(
            "headrace_prediction_ratio",
            "Actual over predicted time, of the wait in the router and of the first token",
            ["what", "class"],
            registry,
            buckets=RATIO_BUCKETS,
        )
        self.admissions = Tallies(
            "headrace_admissions", "Requests let in or refused by load", ["class", "verdict"], registry
        )
        self.classified = Tallies(
            "headrace_requests_classified", "Why requests ran in their class", ["class", "reason"], registry
        )
        self.displaced = Counter(
            "headrace_requests_displaced", "Batch requests that gave way", ["how"], registry=registry
        )
        from_zero(self.displaced, ("paused", "returned"))
        self.headroom = Gauge(
            "headrace_headroom_used",
            "Used room for a class's targets; 1 at them",
            ["model", "class"],
            registry=registry,
        )
        self.index_blocks = Gauge(
            "headrace_prefix_index_blocks",
            "KV blocks of the workers in the index",
            ["model"],
            registry=registry,
        )
        self.index_bytes = Gauge(
            "headrace_prefix_index_bytes", "Memory of the index", ["model"], registry=registry
        )
        self.prompt_placed = Tallies(
            "headrace_prompt_tokens_placed",
            "Prompt tokens given to workers, by whether they were thought to be cached there",
            ["cached"],
            registry,
        )
        self.running = Level("headrace_requests_running", "Requests in the router", registry)
        self.flights = Gauge(
            "headrace_flights",
            "Requests that wait for a worker, run, or have an answer to be read",
            registry=registry,
        )
        self.seats = Gauge(
            "headrace_seats",
            "Slots of workers that are taken, by cancelled requests until the worker has ended them",
            registry=registry,
        )
        self.first_token = Spreads(
            "headrace_time_to_first_token_seconds",
            "From arrival to first token",
            ["class"],
            registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self.token_gaps = Spreads(
            "headrace_inter_token_seconds",
            "Time between output tokens",
            ["class"],
            registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self.output_tokens = Tallies("headrace_output_tokens", "Output tokens relayed", [], registry).labels()
        self.prompt_tokens = Tallies(
            "headrace_prompt_tokens", "Prompt tokens accepted", [], registry
        ).labels()
        self.cache = Counter(
            "headrace_router_cache_lookups",
            "Look-ups in the cache service",
            ["kind", "outcome"],
            registry=registry,
        )
        self.cache_dropped = Counter(
            "headrace_router_cache_stores_dropped", "Entries that were not stored", registry=registry
        )
        self.leases = Counter(
            "headrace_quota_claims", "Shares of quotas asked for", ["outcome"], registry=registry
        )
        from_zero(self.leases, ("answered", "unanswered"))
        self.ended = Tallies("headrace_requests", "Requests that ended", ["outcome"], registry)
        self.returned = Counter(
            "headrace_requests_returned", "Requests given back by workers", ["reason"], registry=registry
        )
        self.moved = Counter(
            "headrace_requests_moved", "Requests that lost their worker and went on", registry=registry
        )
        self.resumed = Counter(
            "headrace_requests_resumed",
            "Requests that went on where they were after their worker's session had broken",
            registry=registry,
        )
        self.taken_up = Counter(
            "headrace_streams_taken_up",
            "Streams that another call had begun, by how they went on",
            ["how"],
            registry=registry,
        )
        from_zero(self.taken_up, get_args(TakenUp))
        self.bad_frames = Counter(
            "headrace_bad_frames", "What workers sent against the protocol", ["kind"], registry=registry
        )
        from_zero(self.bad_frames, get_args(BadFrame))
        self.workers = Gauge("headrace_workers", "Sessions of workers", ["model", "state"], registry=registry)
        self.credit = Gauge(
            "headrace_credit_sequences", "Sequences that may be submitted now", ["worker"], registry=registry
        )

    def launched(self, order: Order) -> None:
        """Counts a request that is to run."""
        self.classified.labels(CLASS_LABEL[order.latency_class], REASON_LABEL[order.class_reason]).inc()
        self.prompt_tokens.inc(len(order.prompt_ids))

    def admitted(self, order: Order, refusal: Refusal | None) -> None:
        """Counts what load said to a request."""
        verdict = "admitted" if refusal is None else refusal.kind.value.lower()
        self.admissions.labels(CLASS_LABEL[order.latency_class], verdict).inc()

    def seated(self, flight: Flight, assignment: Assignment, now: float) -> None:
        """Counts a request that was given to a worker."""
        name, waited_s = CLASS_LABEL[flight.order.latency_class], now - flight.waiting_since
        self.queue_seconds.labels(name).observe(waited_s)
        uncached, tokens = assignment.cost.prefill_tokens, assignment.ticket.prefill_tokens
        self.prompt_placed.labels("no").inc(uncached)
        self.prompt_placed.labels("yes").inc(max(0, tokens - uncached))
        if flight.attempt == 1:
            self._predicted("queue", name, waited_s, assignment.predicted.wait_s)

    def _predicted(self, what: str, name: str, actual_s: float, predicted_s: float) -> None:
        """Times that nobody could notice are equal."""
        if isfinite(predicted_s):
            ratio = max(actual_s, GRAIN_S) / max(predicted_s, GRAIN_S)
            self.prediction.labels(what, name).observe(ratio)

    def forget(self, worker_id: str) -> None:
        """Drops what is only told of workers that are there."""
        with suppress(KeyError):
            self.credit.remove(worker_id)

    def streamed(self, tokens: int, gaps: Mapping[Gap, int], now: float) -> None:
        """Counts the output of one frame; by each gap, how many requests had it."""
        self.output_tokens.inc(tokens)
        for gap, times in gaps.items():
            seconds, row = now - gap.before_s, self.token_gaps.labels(CLASS_LABEL[gap.latency_class])
            row.add(seconds / gap.tokens, seconds * times, gap.tokens * times)

    def began(self, flight: Flight, now: float) -> None:
        """Counts a first token."""
        name, actual_s = CLASS_LABEL[flight.order.latency_class], now - flight.order.arrival_s
        self.first_token.labels(name).observe(actual_s)
        if flight.predicted is not None:
            self._predicted("first_token", name, actual_s, flight.predicted.ttft_s)
