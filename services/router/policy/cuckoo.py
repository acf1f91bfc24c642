"""A cuckoo hash table of fixed size: digests of 16 bytes and a number each, 20 bytes a slot.

Three places a digest and one slot a place: a look-up is three gathers, whatever the load. The places are
multiplied out with odd factors drawn at random, so that no pattern in digests crowds them. Number 0 means
empty. What finds no place is given back: to grow is its owner's business.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.router.policy.trails import Slots

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]

_MOST_KICKS = 500
_ALL_ONES = (1 << 64) - 1


class Homeless(NamedTuple):
    """An entry that found no place."""

    low: int
    high: int
    number: int


class Cuckoo:
    """One table of so many slots, a power of 2."""

    def __init__(self, size: int) -> None:
        self.size = size
        # One allocation: the system keeps it in large pages where it would not keep three.
        halves = np.zeros(5 * (size + 1), np.uint32)
        words = halves[: 4 * (size + 1)].view(np.uint64)
        self.low: Words = words[: size + 1]
        self.high: Words = words[size + 1 :]
        self.numbers: Numbers = halves[4 * (size + 1) :]
        """The last slot stays empty: -1 has number 0."""
        self.count = 0
        self._lows, self._highs = self.low.data, self.high.data
        self._numbers = self.numbers.data
        self._factors = tuple(secrets.randbits(64) | 1 for _ in range(3))
        self._shift = 65 - size.bit_length()
        self._np_factors = tuple(np.uint64(each) for each in self._factors)
        self._np_shift = np.uint64(self._shift)
        self._kick = 0

    def find(self, low: Words, high: Words) -> Slots:
        """Slots of digests; -1 for those that are not here."""
        places = self._all_places(low, high)
        here = self.low.take(places[:2]) == low
        slots = _chosen(here, places)
        same = (self.low.take(slots) == low) & (self.high.take(slots) == high)
        if np.count_nonzero(same) < len(same):
            self._search_again((~same).nonzero()[0], slots, low, high)
        return slots

    def leads(self, slots: Slots, low: Words, high: Words) -> bool:
        """Whether the first digests of a chain are in these slots and the next is not here."""
        count = len(slots)
        if count > len(low):
            return False
        if count < len(low) and self.find_one(low.item(count), high.item(count)) >= 0:
            return False
        same = (self.low.take(slots) == low[:count]) & (self.high.take(slots) == high[:count])
        return bool(np.count_nonzero(same) == count)

    def find_one(self, low: int, high: int) -> int:
        """The slot of a digest, or -1."""
        for slot in self._places(low, high):
            if self._lows[slot] == low and self._highs[slot] == high:
                return slot
        return -1

    def number_at(self, slot: int) -> int:
        """The number in a slot."""
        return self._numbers[slot]

    def write(self, slots: Slots, numbers: Numbers) -> None:
        """Changes numbers; 0 frees a slot."""
        self.numbers[slots] = numbers
        freed = slots[numbers == 0]
        self.low[freed] = self.high[freed] = 0
        self.count -= len(freed)

    def write_one(self, slot: int, number: int) -> None:
        """Changes a number; 0 frees the slot."""
        self._numbers[slot] = number
        if not number:
            self._lows[slot] = self._highs[slot] = 0
            self.count -= 1

    def insert(self, low: Words, high: Words, numbers: Numbers) -> list[Homeless]:
        """Adds digests that are not here and differ from each other."""
        rest = np.arange(len(low))
        for each in self._all_places(low, high):
            places = each[rest]
            taken = self._claim(places, rest)
            self._fill(places[taken], low, high, numbers, rest[taken])
            rest = rest[~taken]
        left = zip(low[rest].tolist(), high[rest].tolist(), numbers[rest].tolist(), strict=True)
        found = [self.insert_one(*each) for each in left]
        return [each for each in found if each is not None]

    def insert_one(self, low: int, high: int, number: int) -> Homeless | None:
        """Adds a digest that is not here; returns what was pushed out of it all, if anything."""
        lows, highs, numbers = self._lows, self._highs, self._numbers
        for _ in range(_MOST_KICKS):
            places = self._places(low, high)
            for slot in places:
                if not numbers[slot]:
                    lows[slot], highs[slot], numbers[slot] = low, high, number
                    self.count += 1
                    return None
            self._kick = (self._kick * 69069 + 1) & 0xFFFFFFFF
            slot = places[(self._kick >> 16) % 3]
            pushed = lows[slot], highs[slot], numbers[slot]
            lows[slot], highs[slot], numbers[slot] = low, high, number
            low, high, number = pushed
        return Homeless(low, high, number)

    def _claim(self, places: Slots, rest: Slots) -> npt.NDArray[np.bool_]:
        """Which of `rest` get their place: it is free, and of several that want it one has it."""
        free = self.numbers.take(places) == 0
        wanted = (rest + 1).astype(np.uint32)
        self.numbers[places[free]] = wanted[free]
        taken: npt.NDArray[np.bool_] = free & (self.numbers.take(places) == wanted)
        return taken

    def _fill(self, slots: Slots, low: Words, high: Words, numbers: Numbers, which: Slots) -> None:
        self.low[slots], self.high[slots] = low[which], high[which]
        self.numbers[slots] = numbers[which]
        self.count += len(which)

    def _search_again(self, which: Slots, slots: Slots, low: Words, high: Words) -> None:
        """What is not here, or has its first word in common with another."""
        low, high = low.take(which), high.take(which)
        slots[which] = -1
        for places in self._all_places(low, high):
            same = (self.low.take(places) == low) & (self.high.take(places) == high)
            slots[which[same]] = places[same]

    def _all_places(self, low: Words, high: Words) -> Slots:
        words = np.empty((3, len(low)), np.uint64)
        first, second, third = self._np_factors
        np.multiply(low, first, out=words[0])
        np.multiply(high, second, out=words[1])
        np.multiply(low ^ high, third, out=words[2])
        words >>= self._np_shift
        places: Slots = words.view(np.int64)
        return places

    def _places(self, low: int, high: int) -> tuple[int, int, int]:
        first, second, third = self._factors
        shift = self._shift
        return (
            (low * first & _ALL_ONES) >> shift,
            (high * second & _ALL_ONES) >> shift,
            ((low ^ high) * third & _ALL_ONES) >> shift,
        )


def _chosen(here: npt.NDArray[np.bool_], places: Slots) -> Slots:
    """The first place, else the second where it is there, else the third. [3, n] is overwritten.

    Masks instead of a branch: which it is, no processor foresees.
    """
    first, second = places[0], places[1]
    found: Slots = places[2]
    masks = here.view(np.int8).astype(np.int64)
    np.negative(masks, out=masks)
    second ^= found
    second &= masks[1]
    found ^= second
    first ^= found
    first &= masks[0]
    found ^= first
    return found
