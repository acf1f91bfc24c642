"""SGLang's and SMG's `cache_aware`: affinity, dropped for everybody while load is uneven.

Source: model_gateway/src/policies/cache_aware.rs (lightseekorg/smg, earlier sgl-router); defaults
cache_threshold 0.3, balance_abs_threshold 64, balance_rel_threshold 1.5.

    uneven = max - min > 64 and max > 1.5 min        (requests in flight)
    uneven: fewest requests;  matched > 0.3: the matched worker;  else: the smallest tree
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.sim.published.view import Ask, Pool


@dataclass(frozen=True)
class CacheAware:
    """`cache_aware` with an index of its own history."""

    cache_threshold: float = 0.3
    balance_abs: int = 64
    balance_rel: float = 1.5
    name: ClassVar[str] = "SGLang cache_aware"
    poll_s: ClassVar[float | None] = None
    own_history: ClassVar[bool] = True

    def choose(self, ask: Ask, pool: Pool) -> int:
        most, fewest = max(pool.in_flight), min(pool.in_flight)
        if most - fewest > self.balance_abs and most > self.balance_rel * fewest:
            return pool.least([float(each) for each in pool.in_flight])
        best = max(range(len(pool)), key=ask.cached_tokens.__getitem__)
        if ask.cached_tokens[best] > self.cache_threshold * ask.prompt_tokens:
            return best
        return pool.least([float(each) for each in pool.cache_tokens])
