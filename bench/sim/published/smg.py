"""SMG's `least_load`: seconds of queued and lately given tokens, and a price for full KV.

Source: model_gateway/src/policies/least_load.rs of lightseekorg/smg; lambda 0.15 s, throughput 2,000 tokens/s
where a worker reports none, poll every 10 s, tokens in flight set to zero when a poll lands.

    load = (queued uncached tokens + tokens given since the poll) / throughput + lambda * k / (1 - k)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.sim.published.view import Ask, Pool


@dataclass(frozen=True)
class LeastLoad:
    """`least_load`."""

    throughput: float = 2000.0
    price_s: float = 0.15
    name: ClassVar[str] = "SMG least_load"
    poll_s: ClassVar[float | None] = 10.0
    own_history: ClassVar[bool] = True

    def choose(self, ask: Ask, pool: Pool) -> int:
        return pool.least([self.load_s(pool, place) for place in range(len(pool))])

    def load_s(self, pool: Pool, place: int) -> float:
        """Of a worker, in seconds."""
        tokens = pool.polled[place].waiting_tokens + pool.since_poll_tokens[place]
        used = min(pool.polled[place].kv_used, 0.999)
        return tokens / self.throughput + self.price_s * used / (1.0 - used)
