"""llm-d: the weighted blend of scorers, and its successor "sticky until saturated".

Sources: llm-d-inference-scheduler (scorers prefix-cache 3, queue 2, kv-cache-utilization 2; metrics read
every 50 ms); llm-d.github.io blog of 2026-08-17 (affinity 0.8, tau = R_peak * T_max, shipped 15,928 tok/s x
18 s; then least uncached tokens in flight).

    blend  = 3 * matched share + 2 * (max queue - queue) / (max queue - min queue) + 2 * (1 - KV used)
    sticky: keep workers with >= 0.8 of the prompt cached, unless warm TTFT - cold TTFT > T_max, with
            TTFT = uncached tokens in flight / R_peak
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.sim.published.view import Ask, Pool


@dataclass(frozen=True)
class Blend:
    """prefix : queue : KV utilisation = 3 : 2 : 2."""

    prefix: float = 3.0
    queue: float = 2.0
    kv: float = 2.0
    name: ClassVar[str] = "llm-d blend 3:2:2"
    poll_s: ClassVar[float | None] = 0.05
    own_history: ClassVar[bool] = True

    def choose(self, ask: Ask, pool: Pool) -> int:
        return pool.least([-self.score(ask, pool, place) for place in range(len(pool))])

    def score(self, ask: Ask, pool: Pool, place: int) -> float:
        """Of a worker, the highest wins."""
        queues = [each.waiting for each in pool.polled]
        longest, shortest = max(queues), min(queues)
        queue = 1.0 if longest == shortest else (longest - queues[place]) / (longest - shortest)
        matched = ask.cached_tokens[place] / ask.prompt_tokens
        return self.prefix * matched + self.queue * queue + self.kv * (1.0 - pool.polled[place].kv_used)


@dataclass(frozen=True)
class Sticky:
    """Affinity first, broken when waiting for the warm worker costs more than `max_penalty_s`."""

    affinity: float = 0.8
    max_penalty_s: float = 18.0
    name: ClassVar[str] = "llm-d sticky until saturated"
    poll_s: ClassVar[float | None] = None
    own_history: ClassVar[bool] = True

    def choose(self, ask: Ask, pool: Pool) -> int:
        tokens = [
            float(queued + ask.prompt_tokens - cached)
            for queued, cached in zip(pool.prefill_tokens, ask.cached_tokens, strict=True)
        ]
        return pool.least(tokens, self.candidates(ask, pool))

    def candidates(self, ask: Ask, pool: Pool) -> list[int]:
        """The warm workers, or all."""
        everyone = list(range(len(pool)))
        warm = [place for place in everyone if ask.cached_tokens[place] >= self.affinity * ask.prompt_tokens]
        cold = [place for place in everyone if place not in warm]
        if not warm or not cold:
            return everyone
        ttft_s = [queued / rate for queued, rate in zip(pool.prefill_tokens, pool.peak_rate, strict=True)]
        penalty_s = min(ttft_s[place] for place in warm) - min(ttft_s[place] for place in cold)
        return everyone if penalty_s > self.max_penalty_s else warm
