"""Who holds which block of KV memory. Knows nothing of requests, devices or classes.

    free ──take──▶ held ──release──▶ free      (never sealed, or another block has the same content)
                    │ ▲        └───▶ cached    (sealed: findable, least recently used is taken first)
                   seal └──match───────┘

Invariant: free + cached + held == total. A block that a launched step may still read or write stays held
until that step has completed; there is no other way back than `release`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from services.worker.scheduler.events import NO_KV_EVENTS, KVEvents, KVSnapshot


class Link(NamedTuple):
    """One full block of a chain: its name, the name before it, and the ids it stands for."""

    digest: bytes
    parent: bytes
    ids: bytes  # packed 32-bit


class PoolStatistics(NamedTuple):
    free: int
    cached: int
    held: int
    total: int


class BlockPool:
    """`total` blocks, numbered from 0."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = list(range(total - 1, -1, -1))  # taken from the end: low numbers first
        self._cached: dict[int, None] = {}  # sealed and unreferenced, least recently used first
        self._references = [0] * total
        self._held = 0
        self._links: dict[int, Link] = {}  # of sealed blocks
        self._by_digest: dict[bytes, int] = {}
        self._deferred: dict[int, list[int]] = {}  # by step: blocks to give back once it has completed
        self._completed_step = 0
        self._events: list[tuple[bool, bytes]] = []
        self._next_event = 1

    @property
    def available(self) -> int:
        """Blocks that `take` could give now."""
        return len(self._free) + len(self._cached)

    @property
    def returning(self) -> int:
        """References that come back when launched steps complete; each may free a block."""
        return sum(map(len, self._deferred.values()))

    def find(self, links: Iterable[Link]) -> list[int]:
        """The longest run of blocks that hold this chain, ids compared; takes no reference."""
        found = []
        for link in links:
            block = self._by_digest.get(link.digest)
            if block is None or self._links[block] != link:
                break
            found.append(block)
        return found

    def count_cached(self, blocks: Iterable[int]) -> int:
        """How many of these blocks `hold` would take away from `available`."""
        return sum(self._references[block] == 0 for block in blocks)

    def count_exclusive(self, blocks: Iterable[int]) -> int:
        """How many of these held blocks would become available if their holder released them."""
        return sum(self._references[block] == 1 for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Take a reference to found blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
                self._held += 1
            self._references[block] += 1

    def take(self, count: int) -> list[int] | None:
        """`count` blocks without content, or None when there are fewer; evicts what was used longest ago."""
        if count > self.available:
            return None
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        self._held += count
        return blocks

    def seal(self, block: int, link: Link) -> None:
        """The held block is full of this content and findable from now on; a second block with it is not."""
        if link.digest not in self._by_digest and block not in self._links:
            self._by_digest[link.digest] = block
            self._links[block] = link
            self._events.append((True, link.digest))

    def release(self, blocks: list[int], last_reader_step: int) -> None:
        """Give references back, now or when the step has completed that reads the blocks last.

        Blocks come in the order of their chain; its end is evicted before its beginning.
        """
        if last_reader_step > self._completed_step:
            self._deferred.setdefault(last_reader_step, []).extend(reversed(blocks))
        else:
            self._give_back(reversed(blocks))

    def complete(self, step: int) -> None:
        """All steps up to this one have completed on the device."""
        self._completed_step = step
        for due in [number for number in self._deferred if number <= step]:
            self._give_back(self._deferred.pop(due))

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(len(self._free), len(self._cached), self._held, self._total)

    def take_events(self) -> KVEvents:
        """Changes since the last call."""
        if not self._events:
            return NO_KV_EVENTS
        stored = np.array([event[0] for event in self._events], np.bool_)
        events = KVEvents(self._next_event, stored, tuple(event[1] for event in self._events))
        self._next_event += len(self._events)
        self._events.clear()
        return events

    def snapshot(self) -> KVSnapshot:
        """Everything findable, as of the last event, taken or not."""
        return KVSnapshot(self._next_event + len(self._events) - 1, tuple(self._by_digest))

    def check(self) -> None:
        """Raise AssertionError when the books do not balance; O(total), for tests and idle times."""
        free, cached, held, total = self.statistics()
        assert free + cached + held == total, self.statistics()
        assert len(set(self._free)) == free, "a block is free twice"
        assert held == sum(count > 0 for count in self._references), "held differs from the references"
        assert all(self._references[block] == 0 for block in (*self._free, *self._cached))
        assert not set(self._free) & set(self._links), "a free block is findable"
        assert set(self._cached) <= set(self._links), "a cached block cannot be found"
        assert {block: link.digest for block, link in self._links.items()} == {
            block: digest for digest, block in self._by_digest.items()
        }

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        digest = self._links.pop(block).digest
        del self._by_digest[digest]
        self._events.append((False, digest))
        return block

    def _give_back(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._references[block] -= 1
            if self._references[block] == 0:
                self._held -= 1
                if block in self._links:
                    self._cached[block] = None
                else:
                    self._free.append(block)
