"""What the tokenizer service counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.metrics import LATENCY_BUCKETS_S


class TokenizerMetrics:
    """Counters and gauges of one tokenizer process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.items = Counter(
            "headrace_tokenizer_items", "Texts and conversations, by outcome", ["outcome"], registry=registry
        )
        self.tokens = Counter("headrace_tokenizer_tokens", "Ids that encodings gave", registry=registry)
        self.seconds = Histogram(
            "headrace_tokenizer_encode_seconds",
            "Time of one Encode call in the pool, waiting included",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.cache_lookups = Counter(
            "headrace_tokenizer_cache_lookups", "Look-ups of encodings", ["result"], registry=registry
        )
        self.fast_path = Gauge(
            "headrace_tokenizer_fast_path", "1 while the fast tokenizer is in use", registry=registry
        )
