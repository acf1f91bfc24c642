"""Requests whose end a lost frame may have told: one that stays silent after it is moved."""

from __future__ import annotations

from collections.abc import Iterable

SILENT_S = 2.0


class Suspects:
    """Slots of one session, from a lost frame to the next word of them."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._since)

    def add(self, slots: Iterable[int], now: float) -> None:
        """A frame was lost that may have been about any of these."""
        self._since.update(dict.fromkeys(slots, now))

    def heard(self, slot: int) -> None:
        """There is news of a slot: what the lost frame told of it shows by its index."""
        if self._since:
            self._since.pop(slot, None)

    def due(self, now: float) -> list[int]:
        """Slots that were silent for SILENT_S; each is named once."""
        silent = [slot for slot, since_s in self._since.items() if now - since_s > SILENT_S]
        for slot in silent:
            del self._since[slot]
        return silent
