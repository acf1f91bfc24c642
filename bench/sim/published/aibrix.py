"""AIBrix's `prefix-cache`: the best match that is not busier than mean + 2 sigma.

Source: pkg/plugins/gateway/algorithms/prefix_cache.go of vllm-project/aibrix; imbalance of 16 running
requests, standard-deviation factor 2.

    max - min of running > 16: fewest running
    by matched share, highest first (fewest running among equals): the first with running <= mean + 2 sigma
    none matches, or all are busier: fewest running
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import ClassVar

from bench.sim.published.view import Ask, Pool


@dataclass(frozen=True)
class PrefixCache:
    """`routing-strategy: prefix-cache`."""

    imbalance: int = 16
    sigmas: float = 2.0
    name: ClassVar[str] = "AIBrix prefix-cache"
    poll_s: ClassVar[float | None] = None
    own_history: ClassVar[bool] = True

    def choose(self, ask: Ask, pool: Pool) -> int:
        running = pool.in_flight
        fewest = [float(each) for each in running]
        if max(running) - min(running) > self.imbalance:
            return pool.least(fewest)
        limit = statistics.fmean(running) + self.sigmas * statistics.pstdev(running)
        matched = [place for place in range(len(pool)) if ask.cached_tokens[place] > 0]
        for place in sorted(matched, key=lambda each: (-ask.cached_tokens[each], running[each])):
            if running[place] <= limit:
                return place
        return pool.least(fewest)
