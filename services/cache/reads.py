"""Look-ups of Valkey: all that wait travel as one MGET, and nobody waits longer than the budget.

The connection belongs to one task. A caller that gives up does not cancel the read: a connection that is torn
down with every slow answer never becomes fast again.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from redis.exceptions import RedisError

from services.cache.metrics import CacheMetrics
from services.cache.valkey import Valkey

MOST_NAMES = 512  # of one MGET
Values = list[bytes | None]


class _Waiting(NamedTuple):
    names: list[bytes]
    values: asyncio.Future[Values]


class Reads:
    """Batches look-ups."""

    def __init__(self, valkey: Valkey, metrics: CacheMetrics, budget_s: float) -> None:
        self._valkey = valkey
        self._metrics = metrics
        self._budget_s = budget_s
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()

    async def get(self, names: list[bytes]) -> Values:
        """The stored bytes, None where there are none or they did not come in time. Never raises."""
        misses: Values = [None] * len(names)
        if not self._valkey.reliable:
            return misses
        started = time.monotonic()
        answer: asyncio.Future[Values] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(names, answer))
        self._wake.set()
        done, _ = await asyncio.wait((answer,), timeout=self._budget_s)
        seconds = time.monotonic() - started
        self._metrics.read_seconds.observe(seconds)
        self._valkey.answered(bool(done), seconds)
        if done:
            return answer.result()
        answer.cancel()
        self._metrics.abandoned.inc()
        return misses

    async def run(self) -> None:
        """Reads what is waited for, until cancelled."""
        while True:
            await self._wake.wait()
            batch = self._take()
            if batch:
                await self._read(batch)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        count = 0
        while self._waiting and (not batch or count + len(self._waiting[0].names) <= MOST_NAMES):
            each = self._waiting.pop(0)
            if not each.values.done():
                batch.append(each)
                count += len(each.names)
        if not self._waiting:
            self._wake.clear()
        return batch

    async def _read(self, batch: list[_Waiting]) -> None:
        names = [name for each in batch for name in each.names]
        try:
            values: Values = await self._valkey.client.mget(names)
        except RedisError as error:
            self._valkey.failed(error)
            values = [None] * len(names)
        start = 0
        for each in batch:
            end = start + len(each.names)
            if not each.values.done():
                each.values.set_result(values[start:end])
            start = end
