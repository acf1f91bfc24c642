"""From who keeps each block of a chain to how many blocks from its beginning each worker keeps.

    masks by block    1111 1111 0111 0011    who keeps it: a bit a position
    leaving           1000 at 2, 0100 at 3, 0011 at 4
    hits              4 4 3 2                by position, the lowest bit first

Most chains are kept by the same workers from end to end, and there are few such sets: their spread is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.router.policy.cuckoo import Numbers

Hits = npt.NDArray[np.int32]
_KEPT = 64


class Spread:
    """Hits of so many positions, a multiple of 8."""

    def __init__(self, width: int) -> None:
        self._octets = width // 8
        self._kept: dict[int, Hits] = {}

    def hits(self, numbers: Numbers, masks: Sequence[int]) -> Hits:
        """Blocks of a chain that each position keeps without a gap; the first is kept by some. [width]

        Args:
            numbers: of the sets that keep its blocks, one a block.
            masks: of the sets, by number.
        """
        first = numbers.item(0)
        if np.count_nonzero(numbers == first) == len(numbers):
            return self._ones(masks[first]) * len(numbers)
        return self._ends(*_stages(numbers, masks))

    def _ends(self, leaving: list[int], ends: list[int]) -> Hits:
        """Each position's end, from disjoint masks."""
        if len(leaving) == 1:
            return self._ones(leaving[0]) * ends[0]
        packed = b"".join([mask.to_bytes(self._octets, "little") for mask in leaving])
        rows = np.frombuffer(packed, np.uint8)
        hits = np.zeros((self._octets, 8), np.int32)
        used = rows.nonzero()[0]
        bits = np.unpackbits(rows[used], bitorder="little").nonzero()[0]
        stage, octet = np.divmod(used[bits >> 3], self._octets)
        hits[octet, bits & 7] = np.array(ends, np.int32)[stage]
        return hits.reshape(-1)

    def _ones(self, mask: int) -> Hits:
        """1 where a mask has a bit. [width]"""
        found = self._kept.get(mask)
        if found is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            octets = np.frombuffer(mask.to_bytes(self._octets, "little"), np.uint8)
            found = self._kept[mask] = np.unpackbits(octets, bitorder="little").astype(np.int32)
        return found


def _stages(numbers: Numbers, masks: Sequence[int]) -> tuple[list[int], list[int]]:
    """Masks of those that end together, and where: together they are who keeps the first block."""
    cuts = (numbers[1:] != numbers[:-1]).nonzero()[0] + 1
    common = masks[int(numbers[0])]
    leaving, ends = [], []
    for start, number in zip(cuts.tolist(), numbers.take(cuts).tolist(), strict=True):
        left = common & masks[number]
        if left != common:
            leaving.append(common ^ left)
            ends.append(start)
            common = left
            if not left:
                return leaving, ends
    return [*leaving, common], [*ends, len(numbers)]
