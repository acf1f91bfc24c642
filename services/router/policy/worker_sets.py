"""Sets of workers as numbers: thousands of blocks are kept by the same few sets.

A set is a bit mask over positions. A number lives as long as entries use it; a worker that leaves is taken
out of all masks in place, so that no entry has to be touched. Two numbers may then mean the same set.
"""

from __future__ import annotations

NOBODY = 0


class WorkerSets:
    """Interned masks with counts of their users. Number 0 is the empty set of no entry."""

    def __init__(self) -> None:
        self.masks: list[int] = [0]
        self.dead = 0
        """Entries whose set became empty because workers left."""
        self.dead_numbers: set[int] = set()
        self._users: list[int] = [0]
        self._numbers: dict[int, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.masks) - 1 - len(self._free)

    def number(self, mask: int) -> int:
        """The number of a set, a new one where needed; it must be taken into use at once."""
        if not mask:
            return NOBODY
        number = self._numbers.get(mask)
        if number is None:
            number = self._numbers[mask] = self._new()
            self.masks[number] = mask
        return number

    def exchange(self, old: int, new: int, entries: int = 1) -> None:
        """So many entries that used one number use another."""
        if new:
            self._users[new] += entries
        if old:
            self._release(old, entries)

    def without(self, position: int) -> None:
        """Takes a worker out of every set."""
        bit = 1 << position
        for number, mask in enumerate(self.masks):
            if mask & bit:
                self._change(number, mask, mask & ~bit)

    def _change(self, number: int, mask: int, left: int) -> None:
        if self._numbers.get(mask) == number:
            del self._numbers[mask]
        self.masks[number] = left
        if left:
            self._numbers.setdefault(left, number)
        else:
            self.dead += self._users[number]
            self.dead_numbers.add(number)

    def _release(self, number: int, entries: int) -> None:
        mask = self.masks[number]
        if not mask:
            self.dead -= entries
        self._users[number] -= entries
        if not self._users[number]:
            if self._numbers.get(mask) == number:
                del self._numbers[mask]
            self.masks[number] = 0
            self.dead_numbers.discard(number)
            self._free.append(number)

    def _new(self) -> int:
        if self._free:
            return self._free.pop()
        self.masks.append(0)
        self._users.append(0)
        return len(self.masks) - 1
