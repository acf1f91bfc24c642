"""The two tiers as one: this process's memory, then Valkey where there is one."""

from __future__ import annotations

import time

from services.cache.frames import Entry, unpack
from services.cache.functions import FORGET, index_name
from services.cache.l1 import L1
from services.cache.metrics import CacheMetrics
from services.cache.reads import Reads
from services.cache.settings import CacheSettings
from services.cache.valkey import Away, Valkey
from services.cache.writes import Writes
from services.common.lifecycle import Tasks

FORGET_AT_ONCE = 1000


class Store:
    """Entries by name. `valkey` None: memory only."""

    def __init__(self, settings: CacheSettings, metrics: CacheMetrics, valkey: Valkey | None) -> None:
        self._metrics = metrics
        self._l1 = L1(settings.l1_bytes)
        self._l1_max_age_s = settings.l1_max_age_s
        self._valkey = valkey
        if valkey is not None:
            self._reads = Reads(valkey, metrics, settings.lookup_budget_ms / 1000)
            self._writes = Writes(valkey, metrics, settings)

    def start(self, tasks: Tasks) -> None:
        """Starts the tasks that read and write Valkey."""
        if self._valkey is not None:
            tasks.spawn(self._valkey.watch(), "valkey-watch")
            tasks.spawn(self._reads.run(), "valkey-reads")
            tasks.spawn(self._writes.run(), "valkey-writes")

    async def lookup(self, kind: str, names: list[bytes]) -> list[bytes | None]:
        """The values, None for misses; bounded by the look-up budget, never raises."""
        now = time.time()
        found: list[bytes | None] = []
        for name in names:
            entry = self._l1.get(name, now)
            found.append(None if entry is None else entry.value)
        missing = [position for position, value in enumerate(found) if value is None]
        self._metrics.lookups.labels(kind, "memory").inc(len(names) - len(missing))
        if missing and self._valkey is not None:
            await self._lookup_valkey(kind, names, found, missing)
        self._metrics.lookups.labels(kind, "miss").inc(sum(value is None for value in found))
        return found

    async def _lookup_valkey(
        self, kind: str, names: list[bytes], found: list[bytes | None], missing: list[int]
    ) -> None:
        values = await self._reads.get([names[position] for position in missing])
        for position, stored in zip(missing, values, strict=True):
            if stored is not None:
                found[position] = self._accept(kind, names[position], stored)

    def _accept(self, kind: str, name: bytes, stored: bytes) -> bytes | None:
        entry = unpack(name, stored)
        if entry is None:
            self._metrics.damaged.inc()
            return None
        if entry.ends_s <= time.time():
            return None
        self._metrics.lookups.labels(kind, "valkey").inc()
        self._keep(name, entry)
        return entry.value

    def store(self, entries: dict[bytes, Entry]) -> int:
        """Keeps entries in memory and queues them for Valkey; returns how many will be stored."""
        for name, entry in entries.items():
            self._keep(name, entry)
        return len(entries) if self._valkey is None else self._writes.offer(entries)

    def _keep(self, name: bytes, entry: Entry) -> None:
        if self._valkey is not None:
            entry = entry._replace(ends_s=min(entry.ends_s, time.time() + self._l1_max_age_s))
        self._l1.put(name, entry)
        self._metrics.memory_bytes.set(self._l1.bytes)
        self._metrics.memory_entries.set(len(self._l1))

    async def forget(self, tag: bytes) -> int:
        """Removes a tenant's entries from both tiers; returns how many. Raises Away: some may be left."""
        removed = self._l1.forget(tag)
        if self._valkey is None:
            return len(removed)
        async with self._writes.writing:
            removed |= self._writes.forget(tag)
            removed |= await self._forget_valkey(self._valkey, tag)
            removed |= self._l1.forget(tag)  # read back meanwhile
        return len(removed)

    async def _forget_valkey(self, valkey: Valkey, tag: bytes) -> set[bytes]:
        removed: set[bytes] = set()
        count = 1
        while count:
            if not valkey.reliable:
                raise Away
            count, names = await valkey.call(valkey.client.fcall(FORGET, 1, index_name(tag), FORGET_AT_ONCE))
            removed.update(names)
        return removed
