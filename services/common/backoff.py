"""How long to wait before a process that died is started again."""

from __future__ import annotations

FIRST_S = 0.5
MOST_S = 30.0
HEALTHY_S = 60.0
"""Who served this long starts afresh: its next death is a new trouble, not the old one."""


class Backoff:
    """Doubles with every death in a row."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after(self, served_s: float) -> float:
        """Seconds to wait after a process that served for so long."""
        if served_s >= HEALTHY_S:
            self._next_s = FIRST_S
        delay_s = self._next_s
        self._next_s = min(MOST_S, self._next_s * 2)
        return delay_s
