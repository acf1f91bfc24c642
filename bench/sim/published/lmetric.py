"""LMetric: new prefill tokens, if routed there, times batch size; no weights.

Source: arXiv 2603.15202 (Alibaba).

    score = (queued uncached tokens + own uncached tokens) * (requests there + 1)
"""

from __future__ import annotations

from typing import ClassVar

from bench.sim.published.view import Ask, Pool


class LMetric:
    """The product as published: raw tokens, not normalised by speed."""

    name: ClassVar[str] = "LMetric"
    poll_s: ClassVar[float | None] = None
    own_history: ClassVar[bool] = True

    def choose(self, ask: Ask, pool: Pool) -> int:
        return pool.least([self.score(ask, pool, place) for place in range(len(pool))])

    def score(self, ask: Ask, pool: Pool, place: int) -> float:
        """Of the request on a worker."""
        tokens = pool.prefill_tokens[place] + ask.prompt_tokens - ask.cached_tokens[place]
        return float(tokens * (pool.in_flight[place] + 1))
