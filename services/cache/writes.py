"""Stores in Valkey: a bounded queue that drops the oldest, emptied every few milliseconds at one go."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from redis.exceptions import OutOfMemoryError, RedisError

from services.cache.frames import Entry, pack
from services.cache.functions import STORE, index_name
from services.cache.metrics import CacheMetrics
from services.cache.settings import CacheSettings
from services.cache.valkey import Valkey
from services.common import logs

GATHER_S = 0.005
MOST_ENTRIES = 256  # of one round trip
log = logs.get(__name__)


class Writes:
    """Entries on their way to Valkey, the newest value of each name."""

    def __init__(self, valkey: Valkey, metrics: CacheMetrics, settings: CacheSettings) -> None:
        self._valkey = valkey
        self._metrics = metrics
        self._settings = settings
        self._queue: OrderedDict[bytes, Entry] = OrderedDict()
        self._bytes = 0
        self._news = asyncio.Event()
        self.writing = asyncio.Lock()  # held while a batch is on its way

    def __len__(self) -> int:
        return len(self._queue)

    def offer(self, entries: dict[bytes, Entry]) -> int:
        """Queues entries; older ones make room. Returns how many of these are queued."""
        if not self._valkey.reliable:
            self._metrics.dropped.labels("away").inc(len(entries))
            return 0
        for name, entry in entries.items():
            self._remove(name)
            self._queue[name] = entry
            self._bytes += len(entry.value)
        while self._full():
            self._remove(next(iter(self._queue)))
            self._metrics.dropped.labels("queue_full").inc()
        self._news.set()
        self._metrics.queued.set(len(self._queue))
        return sum(name in self._queue for name in entries)

    def forget(self, tag: bytes) -> set[bytes]:
        """Drops a tenant's queued entries; returns their names."""
        names = {name for name, entry in self._queue.items() if entry.tag == tag}
        for name in names:
            self._remove(name)
        return names

    async def run(self) -> None:
        """Writes what is queued, until cancelled."""
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER_S)
            async with self.writing:
                await self._write(self._take())

    def _full(self) -> bool:
        return (
            len(self._queue) > self._settings.write_queue_entries
            or self._bytes > self._settings.write_queue_bytes
        )

    def _remove(self, name: bytes) -> None:
        entry = self._queue.pop(name, None)
        if entry is not None:
            self._bytes -= len(entry.value)

    def _take(self) -> dict[bytes, Entry]:
        batch: dict[bytes, Entry] = {}
        while self._queue and len(batch) < MOST_ENTRIES:
            name = next(iter(self._queue))
            batch[name] = self._queue[name]
            self._remove(name)
        if not self._queue:
            self._news.clear()
        self._metrics.queued.set(len(self._queue))
        return batch

    async def _write(self, batch: dict[bytes, Entry]) -> None:
        if not self._valkey.reliable:
            self._metrics.dropped.labels("away").inc(len(batch))
            return
        pipeline = self._valkey.client.pipeline(transaction=False)
        now, most = time.time(), self._settings.tenant_entries
        for name, entry in batch.items():
            ttl_s = max(1, round(entry.ends_s - now))
            pipeline.fcall(STORE, 2, name, index_name(entry.tag), pack(name, entry), ttl_s, most)
        try:
            outcomes = await pipeline.execute(raise_on_error=False)
        except RedisError as error:
            self._valkey.failed(error)
            self._metrics.dropped.labels("away").inc(len(batch))
            return
        self._count(outcomes)

    def _count(self, outcomes: list[object]) -> None:
        refusals = [each for each in outcomes if isinstance(each, RedisError)]
        self._metrics.written.inc(len(outcomes) - len(refusals))
        self._metrics.dropped.labels("refused").inc(len(refusals))
        lost = next((each for each in refusals if not _is_full(each)), None)
        if lost is not None:
            self._valkey.failed(lost)


def _is_full(error: RedisError) -> bool:
    """A full server still answers look-ups: no reason to give it up."""
    return isinstance(error, OutOfMemoryError)
