"""Digests and a number each in a table that grows and shrinks.

It does so by moving a bounded number of slots with each change: old and new are both searched until that is
done. Number 0 means absent; a digest whose first word is 0 cannot be kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.router.policy.cuckoo import Cuckoo, Homeless, Numbers, Words
from services.router.policy.trails import Slots, Trails

LEAST_SLOTS = 1 << 10
FULL = 0.8
SPARSE = 0.15
MOVED_AT_ONCE = 1024
_MOVED_PER_CHANGE = 4


class DigestTable:
    """A number for each digest; 0 is none."""

    def __init__(self) -> None:
        self._new = Cuckoo(LEAST_SLOTS)
        self._old: Cuckoo | None = None
        self._moved = 0
        self._owed = 0
        self._trails = Trails()

    def __len__(self) -> int:
        return self._new.count + (self._old.count if self._old else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return 20 * (self._new.size + (self._old.size if self._old else 0))

    def numbers(self, low: Words, high: Words) -> Numbers:
        """The number of each digest."""
        slots = self._new.find(low, high)
        found = self._new.numbers.take(slots)
        if self._old is not None:
            missing = (slots < 0).nonzero()[0]
            slots = self._old.find(low[missing], high[missing])
            found[missing] = self._old.numbers.take(slots)
        return found

    def walk(self, low: Words, high: Words) -> Numbers:
        """Numbers of a chain's digests, at least up to the first absent one. Its last names the chain."""
        if self._old is not None:
            return self.numbers(low, high)
        name = high.item(-1)
        slots = self._trails.get(name)
        if slots is None or not self._new.leads(slots, low, high):
            slots = _unbroken(self._new.find(low, high))
            self._trails.put(name, slots)
        return self._new.numbers.take(slots)

    def number(self, low: int, high: int) -> int:
        """The number of one digest."""
        for table in (self._new, self._old):
            slot = table.find_one(low, high) if table else -1
            if table and slot >= 0:
                return table.number_at(slot)
        return 0

    def put(self, low: Words, high: Words, numbers: Numbers) -> None:
        """Sets the numbers of digests that differ from each other; 0 removes."""
        rest = np.arange(len(low))
        for table in (self._new, self._old):
            if table:
                slots = table.find(low[rest], high[rest])
                here = slots >= 0
                table.write(slots[here], numbers[rest[here]])
                rest = rest[~here]
        rest = rest[numbers[rest] != 0]
        self._resize(len(rest))
        self._settle(self._new.insert(low[rest], high[rest], numbers[rest]))
        self._owe(len(low))

    def put_one(self, low: int, high: int, number: int) -> None:
        """Sets the number of one digest; 0 removes it."""
        for table in (self._new, self._old):
            slot = table.find_one(low, high) if table else -1
            if table and slot >= 0:
                table.write_one(slot, number)
                break
        else:
            pushed = self._new.insert_one(low, high, number) if number else None
            self._settle([pushed] if pushed else [])
        self._owe(1)

    @property
    def slots(self) -> int:
        """Slots that `peek` looks through."""
        return self._new.size

    def peek(self, start: int, count: int) -> Numbers:
        """Numbers in some slots, to be read at once."""
        return self._new.numbers[start : start + count]

    def drop(self, start: int, which: npt.NDArray[np.bool_]) -> None:
        """Removes what is in some slots from `start` on."""
        slots = which.nonzero()[0] + start
        self._new.write(slots, np.zeros(len(slots), np.uint32))
        self._resize()

    @property
    def moving(self) -> bool:
        """Whether it is growing or shrinking."""
        return self._old is not None

    def move(self, slots: int = MOVED_AT_ONCE) -> None:
        """Goes on with growing or shrinking, by so many slots."""
        old = self._old
        if old is None:
            self._resize()
            return
        part = slice(self._moved, self._moved + slots)
        full = old.numbers[part].nonzero()[0] + self._moved
        low, high, numbers = old.low[full], old.high[full], old.numbers[full]
        old.write(full, np.zeros(len(full), np.uint32))
        self._moved += slots
        if self._moved >= old.size:
            self._old = None
        self._settle(self._new.insert(low, high, numbers))

    def _owe(self, changes: int) -> None:
        self._resize()
        if self._old is None:
            return
        self._owed += _MOVED_PER_CHANGE * changes
        while self._owed >= MOVED_AT_ONCE:
            self._owed -= MOVED_AT_ONCE
            self.move()

    def _resize(self, more: int = 0) -> None:
        count, size = len(self) + more, self._new.size
        if count > FULL * size:
            while count > FULL * size:
                size *= 2
            self._begin(size)
        elif size > LEAST_SLOTS and count < SPARSE * size and self._old is None:
            self._begin(size // 2)

    def _begin(self, size: int) -> None:
        while self._old is not None:
            self.move()
        self._old, self._new = self._new, Cuckoo(size)
        self._trails.clear()
        self._moved = self._owed = 0

    def _settle(self, homeless: list[Homeless]) -> None:
        while homeless:
            self._begin(2 * self._new.size)
            pushed = [self._new.insert_one(*each) for each in homeless]
            homeless = [each for each in pushed if each is not None]


def _unbroken(slots: Slots) -> Slots:
    """Those before the first -1."""
    missing = slots < 0
    return slots[: missing.argmax()].copy() if np.count_nonzero(missing) else slots
