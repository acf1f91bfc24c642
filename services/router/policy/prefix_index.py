"""Which workers keep which KV blocks: packed, sized by what is kept, exact as the workers' events are.

    digest ──DigestTable──▶ number ──WorkerSets──▶ bit mask of positions

A worker has a position from `join` to `leave`. What it was just sent is expected to be there and counts as
kept until it is confirmed or EXPECTED_S have passed, so that a burst with one prefix meets on one worker.
Digests are keyed by scope: whoever has no key cannot name a block, and nothing here tells of other chains.
"""

from __future__ import annotations

import numpy as np

from services.router.policy.cuckoo import Numbers, Words
from services.router.policy.digest_table import DigestTable
from services.router.policy.expected import Expected, name
from services.router.policy.spread import Hits, Spread
from services.router.policy.ticket import Digests
from services.router.policy.worker_sets import WorkerSets

LEAST_WIDTH = 8
_ONE_BY_ONE = 12
_SWEPT_AT_ONCE = 4096
_MOVED_A_TICK = 8192


class PrefixIndex:
    """The KV blocks of all workers of a model, whatever their numerics: digests tell those apart."""

    def __init__(self) -> None:
        self.positions: dict[str, int] = {}
        self.width = LEAST_WIDTH
        """Length of `match`'s answer: a multiple of 8, beyond every position."""
        self.changes = 0
        """Rises with whatever may change an answer of `match`."""
        self._table = DigestTable()
        self._sets = WorkerSets()
        self._spread = Spread(LEAST_WIDTH)
        self._no_hits = _zeros(LEAST_WIDTH)
        self._free = list(range(LEAST_WIDTH - 1, -1, -1))
        self._blocks: list[int] = [0] * LEAST_WIDTH
        self._kept: list[int] = [0] * LEAST_WIDTH
        self._expected = Expected(LEAST_WIDTH)
        self._swept = 0

    def __len__(self) -> int:
        """Digests that some worker keeps."""
        return len(self._table) - self._sets.dead

    @property
    def nbytes(self) -> int:
        """Bytes of the packed table; sets of workers and expectations are a small part on top."""
        return self._table.nbytes

    @property
    def settled(self) -> bool:
        """Whether no growth or tidying is under way, which `expire` goes on with."""
        return not (self._table.moving or self._sets.dead)

    def join(self, key: str, blocks: int) -> int:
        """A worker that can keep so many blocks is there, or now says so; returns its position."""
        position = self.positions.get(key)
        if position is None:
            if not self._free:
                self._widen()
            position = self.positions[key] = self._free.pop()
        self._blocks[position] = blocks
        return position

    def leave(self, key: str) -> None:
        """A worker is gone with all that it kept."""
        self.cleared(key)
        position = self.positions.pop(key)
        self._blocks[position] = 0
        self._free.append(position)

    def kept(self, key: str) -> int:
        """Blocks that a worker keeps, expected ones among them."""
        return self._kept[self.positions[key]]

    def stored(self, key: str, digests: Digests) -> int:
        """A worker keeps these; returns how many were refused, being more than it has blocks."""
        position = self.positions[key]
        self._expected.told_of(position, digests)
        room = self._blocks[position] - self._kept[position] + self._expected.count(position)
        refused = 0
        if len(digests) > room:
            digests = self._new(position, digests)
            refused = max(0, len(digests) - max(0, room))
            digests = digests[: max(0, room)]
        self._set(position, digests)
        return refused

    def removed(self, key: str, digests: Digests) -> None:
        """A worker no longer keeps these."""
        position = self.positions[key]
        self._expected.told_of(position, digests)
        self._unset(position, digests)

    def cleared(self, key: str) -> None:
        """A worker keeps nothing."""
        position = self.positions[key]
        if self._kept[position]:
            self._sets.without(position)
            self.changes += 1
        self._kept[position] = 0
        self._expected.clear(position)

    def replace(self, key: str, digests: Digests) -> int:
        """A worker keeps these and nothing else; returns how many were refused."""
        self.cleared(key)
        return self.stored(key, digests)

    def expect(self, key: str, digests: Digests, now: float) -> None:
        """A worker will soon keep these, unless it says nothing of them for EXPECTED_S."""
        position = self.positions[key]
        if not len(digests) or self._expected.count(position) + len(digests) > self._blocks[position]:
            return
        fresh = self._new(position, digests)
        self._set(position, fresh)
        self._expected.add(position, fresh, now)

    def expire(self, now: float) -> None:
        """Forgets what was expected in vain, and tidies a bounded part of the table."""
        for position, digests in self._expected.in_vain(now):
            self._unset(position, digests)
        self._table.move(_MOVED_A_TICK)
        self._sweep()

    def no_hits(self) -> Hits:
        """Zeroes for every position; read-only."""
        return self._no_hits

    def match(self, digests: Digests) -> Hits:
        """Blocks of a chain that each position keeps, from the beginning on without a gap. [width]"""
        if not len(digests) or not self._table.number(*name(digests, 0)):
            return self.no_hits()
        return self._spread.hits(self._table.walk(*_words(digests)), self._sets.masks)

    def told(self, position: int, digests: Digests) -> int:
        """Of the blocks that `match` finds at a position, those that its worker has told of."""
        return self._expected.told(position, digests)

    def _numbers(self, digests: Digests) -> Numbers:
        return self._table.numbers(*_words(digests))

    def _new(self, position: int, digests: Digests) -> Digests:
        """Those that the worker is not known to keep, each once."""
        bit, masks = 1 << position, self._sets.masks
        digests = _distinct(digests)
        new = [not masks[number] & bit for number in self._numbers(digests).tolist()]
        found: Digests = digests[np.array(new, np.bool_)]
        return found

    def _set(self, position: int, digests: Digests) -> None:
        self._exchange(position, digests, 1 << position)

    def _unset(self, position: int, digests: Digests) -> None:
        self._exchange(position, digests, 0)

    def _exchange(self, position: int, digests: Digests, bit: int) -> None:
        """Puts a position's bit into the sets of digests, or takes it out."""
        self.changes += 1
        if len(digests) <= _ONE_BY_ONE:
            for low, high in digests.tolist():
                self._exchange_one(position, low, high, bit)
            return
        low, high = _words(_distinct(digests))
        numbers = self._table.numbers(low, high)
        olds, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        pairs = zip(olds.tolist(), counts.tolist(), strict=True)
        news = np.array([self._successor(position, old, bit, count) for old, count in pairs], np.uint32)
        changed = (news != olds)[which]
        self._table.put(low[changed], high[changed], news[which][changed])

    def _exchange_one(self, position: int, low: int, high: int, bit: int) -> None:
        old = self._table.number(low, high) if low else 0
        new = self._successor(position, old, bit, 1) if low else 0
        if new != old:
            self._table.put_one(low, high, new)

    def _successor(self, position: int, old: int, bit: int, entries: int) -> int:
        """The number that entries get instead of `old`; users and counts follow."""
        mask = self._sets.masks[old]
        wanted = mask & ~(1 << position) | bit
        if wanted == mask and (mask or not old):
            return old
        new = self._sets.number(wanted)
        self._sets.exchange(old, new, entries)
        if wanted != mask:
            self._kept[position] += entries if bit else -entries
        return new

    def _sweep(self) -> None:
        """Removes some of the entries that nobody keeps any more."""
        if not self._sets.dead or self._table.moving:
            return
        size = self._table.slots
        start = self._swept if self._swept < size else 0
        part = self._table.peek(start, max(_SWEPT_AT_ONCE, size // 64))
        dead = np.isin(part, np.array(list(self._sets.dead_numbers), np.uint32))
        numbers, counts = np.unique(part[dead], return_counts=True)
        self._table.drop(start, dead)
        self._swept = start + len(part)
        for number, entries in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._sets.exchange(number, 0, entries)

    def _widen(self) -> None:
        width = 2 * self.width
        self._free += range(width - 1, self.width - 1, -1)
        self._blocks += [0] * self.width
        self._kept += [0] * self.width
        self._expected.widen(width)
        self._spread, self._no_hits = Spread(width), _zeros(width)
        self.width = width
        self.changes += 1


def _zeros(width: int) -> Hits:
    zeros = np.zeros(width, np.int32)
    zeros.setflags(write=False)
    return zeros


def _words(digests: Digests) -> tuple[Words, Words]:
    words = np.ascontiguousarray(digests.T)
    return words[0], words[1]


def _distinct(digests: Digests) -> Digests:
    """Each digest once; one whose first word is 0 names nothing."""
    _, first = np.unique(digests[:, 0], return_index=True)
    if len(first) < len(digests):
        digests = np.unique(digests, axis=0)
    return digests if digests[:, 0].all() else digests[digests[:, 0] != 0]
