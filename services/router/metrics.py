"""What a router counts. Per-token counts are plain array increments, summed up when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from headrace.v1 import admin_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.metrics import LATENCY_BUCKETS_S, RpcMetrics
from services.router.policy import LatencyClass, Scheduler

if TYPE_CHECKING:
    from services.router.relay.flight import Flight
    from services.router.sessions.workers import Workers


class GapHistogram(Collector):
    """Times between output tokens, by class; cheap enough to be told of each."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._counts = {each: [0] * (len(LATENCY_BUCKETS_S) + 1) for each in LatencyClass}
        self._sums = dict.fromkeys(LatencyClass, 0.0)

    def observe(self, latency_class: LatencyClass, seconds: float, tokens: int) -> None:
        """Counts `tokens` gaps of `seconds / tokens` each."""
        self._counts[latency_class][bisect_left(LATENCY_BUCKETS_S, seconds / tokens)] += tokens
        self._sums[latency_class] += seconds

    def collect(self) -> Iterator[Metric]:
        """The histogram as Prometheus wants it."""
        family = HistogramMetricFamily(self._name, self._text, labels=["class"])
        for each, counts in self._counts.items():
            family.add_metric([each.name.lower()], _cumulative(counts), self._sums[each])
        yield family


class RouterMetrics:
    """All metrics of one router process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rpc = RpcMetrics(registry)
        self.queue_depth = Gauge("headrace_queue_depth", "Requests that wait", ["class"], registry=registry)
        self.queue_seconds = Histogram(
            "headrace_queue_seconds",
            "Wait in the router for a worker",
            ["class"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.running = Gauge("headrace_requests_running", "Requests in the router", registry=registry)
        self.first_token = Histogram(
            "headrace_time_to_first_token_seconds",
            "From arrival to first token",
            ["class"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.token_gaps = GapHistogram("headrace_inter_token_seconds", "Time between output tokens")
        registry.register(self.token_gaps)
        self.output_tokens = Counter("headrace_output_tokens", "Output tokens relayed", registry=registry)
        self.prompt_tokens = Counter("headrace_prompt_tokens", "Prompt tokens accepted", registry=registry)
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
        self.ended = Counter("headrace_requests", "Requests that ended", ["outcome"], registry=registry)
        self.returned = Counter(
            "headrace_requests_returned", "Requests given back by workers", ["reason"], registry=registry
        )
        self.moved = Counter(
            "headrace_requests_moved", "Requests that lost their worker and went on", registry=registry
        )
        self.bad_frames = Counter(
            "headrace_bad_frames", "What workers sent against the protocol", ["kind"], registry=registry
        )
        self.workers = Gauge("headrace_workers", "Sessions of workers", ["model", "state"], registry=registry)
        self.credit = Gauge(
            "headrace_credit_sequences", "Sequences that may be submitted now", ["worker"], registry=registry
        )

    def observe(self, scheduler: Scheduler, workers: Workers, now: float) -> None:
        """Takes stock of what waits and who is there."""
        waiting = dict.fromkeys(LatencyClass, 0)
        for ticket in scheduler.tickets():
            waiting[ticket.latency_class] += 1
        for each, count in waiting.items():
            self.queue_depth.labels(each.name.lower()).set(count)
        self.workers.clear()
        for session in workers:
            view = session.view(now)
            state = admin_pb2.WorkerState.Name(session.state(now)).removeprefix("WORKER_STATE_").lower()
            self.workers.labels(session.model, state).inc()
            self.credit.labels(session.worker_id).set(view.credit.sequences)

    def forget(self, worker_id: str) -> None:
        """Drops what is only told of workers that are there."""
        with suppress(KeyError):
            self.credit.remove(worker_id)

    def tokens(self, flight: Flight, made: int, had: int, last_s: float, now: float) -> None:
        """Counts output of one update; `had` ids were there before, the last at `last_s`."""
        self.output_tokens.inc(made)
        latency_class = flight.order.latency_class
        if had:
            self.token_gaps.observe(latency_class, now - last_s, made)
        else:
            self.first_token.labels(latency_class.name.lower()).observe(now - flight.order.arrival_s)


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in LATENCY_BUCKETS_S), "+Inf"]
    total, found = 0, []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
