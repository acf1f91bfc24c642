"""What of one Encode call runs together in the pool, so that nobody waits or fails for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from services.tokenizer.metrics import TokenizerMetrics
from services.tokenizer.text.errors import TextError
from services.tokenizer.text.items import Conversation, Item, Outcome
from services.tokenizer.text.pool import TextPool


class Batches:
    """Plain texts of a call share one job; each conversation is a job of its own.

    A template can loop, and a job past its time is ended with everything in it: a conversation must not take
    others along.
    """

    def __init__(self, pool: TextPool, timeout_s: float, metrics: TokenizerMetrics) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._metrics = metrics

    async def encode(self, items: Sequence[Item], tenant: bytes) -> list[Outcome]:
        """One outcome an item of the tenant, in order; failures are outcomes too."""
        if not items:
            return []
        started = time.monotonic()
        groups = _groups(items)
        results = await asyncio.gather(*(self._job([items[at] for at in group], tenant) for group in groups))
        outcomes: dict[int, Outcome] = {}
        for group, result in zip(groups, results, strict=True):
            outcomes.update(zip(group, result, strict=True))
        ordered = [outcomes[position] for position in range(len(items))]
        self._count(ordered, time.monotonic() - started)
        return ordered

    async def _job(self, items: Sequence[Item], tenant: bytes) -> list[Outcome]:
        try:
            return await self._pool.run(items, self._timeout_s, tenant)
        except TextError as error:
            return [error] * len(items)

    def _count(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        self._metrics.seconds.observe(seconds)
        for outcome in outcomes:
            ids = len(outcome) if isinstance(outcome, list) else 0
            self._metrics.items.labels("ok" if isinstance(outcome, list) else type(outcome).__name__).inc()
            self._metrics.tokens.inc(ids)


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Positions that run together, what is sure to be quick first."""
    conversations = [[at] for at, item in enumerate(items) if isinstance(item, Conversation)]
    texts = [at for at, item in enumerate(items) if not isinstance(item, Conversation)]
    return [texts, *conversations] if texts else conversations
