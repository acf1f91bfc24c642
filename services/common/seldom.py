"""Reports that would flood a log: each thing once in a while, whoever causes it and however often."""

from __future__ import annotations

from collections import OrderedDict

EVERY_S = 60.0
MOST_KEYS = 1024


class Seldom:
    """Tells whether something is to be reported now. Bounded: of many things the oldest are forgotten."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._told: OrderedDict[str, float] = OrderedDict()

    def due(self, key: str, now: float) -> bool:
        """True unless it was true for this key within `every_s`."""
        last_s = self._told.get(key)
        if last_s is not None and now - last_s < self._every_s:
            return False
        self._told[key] = now
        self._told.move_to_end(key)
        if len(self._told) > MOST_KEYS:
            self._told.popitem(last=False)
        return True
