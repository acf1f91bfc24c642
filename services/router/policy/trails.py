"""Where the blocks of a chain were found last: a prompt is looked up when it is admitted, when it is queued
and with each decision about it, and blocks seldom move meanwhile.

A trail says where to look, never what is there: whoever follows it compares each digest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]
BLOCKS_KEPT = 1 << 14
"""Of all trails together, 8 bytes each."""


class Trails:
    """Slots of chains by some name of the chain; the oldest are forgotten first."""

    def __init__(self) -> None:
        self._slots: dict[int, Slots] = {}
        self._blocks = 0

    def get(self, name: int) -> Slots | None:
        """Where the chain's first blocks were."""
        return self._slots.get(name)

    def put(self, name: int, slots: Slots) -> None:
        """Remembers where a chain's first blocks are."""
        self._drop(name)
        self._slots[name] = slots
        self._blocks += _weight(slots)
        while self._blocks > BLOCKS_KEPT:
            self._drop(next(iter(self._slots)))

    def clear(self) -> None:
        """Forgets all."""
        self._slots.clear()
        self._blocks = 0

    def _drop(self, name: int) -> None:
        if name in self._slots:
            self._blocks -= _weight(self._slots.pop(name))


def _weight(slots: Slots) -> int:
    return max(1, len(slots))
