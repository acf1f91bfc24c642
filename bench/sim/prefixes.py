"""What a router that binds on arrival believes to be cached where."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from bench.sim.frame import Blocks


class Prefixes(Protocol):
    """Hits by worker."""

    def hits(self, names: list[bytes]) -> list[int]:
        """Leading blocks of a prompt that are on each worker."""

    def given(self, worker: int, names: list[bytes]) -> None:
        """A prompt goes to a worker."""

    def told(self, worker: int, blocks: Blocks) -> None:
        """A worker's blocks have changed."""

    def gone(self, worker: int) -> None:
        """A worker is no more."""

    def size(self, worker: int) -> int:
        """Blocks believed to be there."""


class ToldPrefixes:
    """What workers tell of their blocks."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._where: dict[bytes, int] = {}  # bit mask of workers
        self._sizes = [0] * workers

    def hits(self, names: list[bytes]) -> list[int]:
        counts, left = [0] * self._workers, (1 << self._workers) - 1
        for depth, name in enumerate(names, 1):
            left &= self._where.get(name, 0)
            if not left:
                break
            rest = left
            while rest:
                lowest = rest & -rest
                counts[lowest.bit_length() - 1] = depth
                rest ^= lowest
        return counts

    def given(self, worker: int, names: list[bytes]) -> None:
        """Blocks are there when the worker says so."""

    def told(self, worker: int, blocks: Blocks) -> None:
        bit, where = 1 << worker, self._where
        for stored, name in zip(blocks.stored, blocks.digests, strict=True):
            mask = where.get(name, 0)
            if stored:
                where[name] = mask | bit
            elif mask == bit:
                del where[name]
            else:
                where[name] = mask & ~bit
            self._sizes[worker] += 1 if stored else -1

    def gone(self, worker: int) -> None:
        bit = 1 << worker
        self._where = {name: mask & ~bit for name, mask in self._where.items() if mask != bit}
        self._sizes[worker] = 0

    def size(self, worker: int) -> int:
        return self._sizes[worker]


class GivenPrefixes:
    """A router's own history: what it gave to whom, the least recently used forgotten first.

    Args:
        capacities: blocks that each worker holds.
    """

    def __init__(self, capacities: list[int]) -> None:
        self._capacities = capacities
        self._there: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in capacities]

    def hits(self, names: list[bytes]) -> list[int]:
        return [_leading(there, names) for there in self._there]

    def given(self, worker: int, names: list[bytes]) -> None:
        there = self._there[worker]
        for name in names:
            there[name] = None
            there.move_to_end(name)
        while len(there) > self._capacities[worker]:
            there.popitem(last=False)

    def told(self, worker: int, blocks: Blocks) -> None:
        """It does not listen."""

    def gone(self, worker: int) -> None:
        self._there[worker].clear()

    def size(self, worker: int) -> int:
        return len(self._there[worker])


def _leading(there: OrderedDict[bytes, None], names: list[bytes]) -> int:
    for count, name in enumerate(names):
        if name not in there:
            return count
    return len(names)
