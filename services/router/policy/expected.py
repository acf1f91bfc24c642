"""Blocks that workers were just sent and have not told of: expected there, for EXPECTED_S at most."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from services.router.policy.ticket import Digests

EXPECTED_S = 2.0


class _Batch(NamedTuple):
    until_s: float
    position: int
    number: int
    digests: list[tuple[int, int]]


class Expected:
    """By position; a block that is expected twice is waited for as long as the later one."""

    def __init__(self, width: int) -> None:
        self._pending: list[dict[tuple[int, int], int]] = [{} for _ in range(width)]
        self._batches: deque[_Batch] = deque()
        self._number = 0

    def widen(self, width: int) -> None:
        """There are so many positions now."""
        self._pending += [{} for _ in range(width - len(self._pending))]

    def count(self, position: int) -> int:
        """Blocks that are expected of a worker."""
        return len(self._pending[position])

    def add(self, position: int, digests: Digests, now: float) -> None:
        """A worker will soon keep these."""
        self._number += 1
        names = [(low, high) for low, high in digests.tolist()]
        self._pending[position].update(dict.fromkeys(names, self._number))
        self._batches.append(_Batch(now + EXPECTED_S, position, self._number, names))

    def told_of(self, position: int, digests: Digests) -> None:
        """The worker has told of these: they are no expectation any more."""
        pending = self._pending[position]
        if pending:
            for low, high in digests.tolist():
                pending.pop((low, high), None)

    def clear(self, position: int) -> None:
        """Nothing is expected of a worker any more."""
        self._pending[position].clear()

    def in_vain(self, now: float) -> Iterator[tuple[int, Digests]]:
        """Positions, and what was expected there for too long; it no longer is."""
        queue = self._batches
        while queue and not now < queue[0].until_s <= now + 2 * EXPECTED_S:
            batch = queue.popleft()
            pending = self._pending[batch.position]
            vain = [each for each in batch.digests if pending.get(each) == batch.number]
            for each in vain:
                del pending[each]
            yield batch.position, np.array(vain, np.uint64).reshape(-1, 2)

    def told(self, position: int, digests: Digests) -> int:
        """Of a chain that a worker keeps, expected blocks among them: those that it has told of.

        Workers compute a prompt from its beginning on, so what is expected lies behind what is told.
        """
        pending = self._pending[position]
        if not pending or not len(digests) or name(digests, -1) not in pending:
            return len(digests)
        if name(digests, 0) in pending:
            return 0
        return bisect_left(range(len(digests)), True, key=lambda block: name(digests, block) in pending)


def name(digests: Digests, block: int) -> tuple[int, int]:
    """The digest of one block."""
    low, high = digests[block].tolist()
    return low, high
