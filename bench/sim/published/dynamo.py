"""NVIDIA Dynamo's KV router: least blocks to prefill and to decode, their sum or their product.

Source: docs/components/router (router-concepts.md, router-guide.md) of ai-dynamo/dynamo; overlap weight 1.0,
temperature 0, active blocks tracked by the router itself.

    linear:  cost = overlap weight * prefill blocks + decode blocks
    lmetric: cost = prefill blocks * (decode blocks + 1)

prefill blocks: those to compute there if the request goes there, its own uncached ones included; decode
blocks: those of active requests there, its own included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.sim.published.view import Ask, Pool

BLOCK = 64


def _blocks(tokens: float) -> float:
    return tokens / BLOCK


@dataclass(frozen=True)
class DynamoLinear:
    """The default `kv` selection policy."""

    overlap_weight: float = 1.0
    name: ClassVar[str] = "Dynamo linear"
    poll_s: ClassVar[float | None] = None
    own_history: ClassVar[bool] = False

    def choose(self, ask: Ask, pool: Pool) -> int:
        return pool.least([self.cost(ask, pool, place) for place in range(len(pool))])

    def cost(self, ask: Ask, pool: Pool, place: int) -> float:
        """Of the request on a worker."""
        prefill = _blocks(pool.prefill_tokens[place] + ask.prompt_tokens - ask.cached_tokens[place])
        decode = _blocks(pool.active_tokens[place] + ask.prompt_tokens)
        return self.overlap_weight * prefill + decode


@dataclass(frozen=True)
class DynamoLMetric:
    """`router_selection_policy=lmetric`."""

    name: ClassVar[str] = "Dynamo lmetric"
    poll_s: ClassVar[float | None] = None
    own_history: ClassVar[bool] = False

    def choose(self, ask: Ask, pool: Pool) -> int:
        return pool.least([self.cost(ask, pool, place) for place in range(len(pool))])

    def cost(self, ask: Ask, pool: Pool, place: int) -> float:
        """Of the request on a worker."""
        prefill = _blocks(pool.prefill_tokens[place] + ask.prompt_tokens - ask.cached_tokens[place])
        return prefill * (_blocks(pool.active_tokens[place]) + 1.0)
