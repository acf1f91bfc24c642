"""What the cache service counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1)


class CacheMetrics:
    """Metrics of one cache service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lookups = Counter(
            "headrace_cache_lookups",
            "Keys looked up, by kind and outcome (memory, valkey, miss)",
            ["kind", "outcome"],
            registry=registry,
        )
        self.abandoned = Counter(
            "headrace_cache_abandoned", "Look-ups of Valkey given up after their budget", registry=registry
        )
        self.damaged = Counter(
            "headrace_cache_damaged", "Values from Valkey that were not what was stored", registry=registry
        )
        self.read_seconds = Histogram(
            "headrace_cache_read_seconds",
            "Duration of reads of Valkey",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.written = Counter("headrace_cache_written", "Entries written to Valkey", registry=registry)
        self.dropped = Counter(
            "headrace_cache_dropped",
            "Entries not written, by reason (away, queue_full, refused)",
            ["reason"],
            registry=registry,
        )
        self.queued = Gauge("headrace_cache_queued", "Entries that wait to be written", registry=registry)
        self.leases = Counter(
            "headrace_cache_leases",
            "Quota claims, by outcome (whole, part, none)",
            ["outcome"],
            registry=registry,
        )
        self.valkey_up = Gauge(
            "headrace_cache_valkey_up",
            "Whether Valkey is relied on; 0 as well when none is set",
            registry=registry,
        )
        self.valkey_lost = Counter(
            "headrace_cache_valkey_lost", "Times that Valkey was given up", registry=registry
        )
        self.memory_bytes = Gauge(
            "headrace_cache_memory_bytes", "Bytes of values in memory", registry=registry
        )
        self.memory_entries = Gauge("headrace_cache_memory_entries", "Values in memory", registry=registry)
