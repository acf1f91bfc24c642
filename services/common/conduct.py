"""How much nonsense the other end of a session may send before it is closed. Pure."""

from __future__ import annotations

BURST = 200
FORGIVEN_A_S = 2.0


class Conduct:
    """A leaky count: honest races (a cancel that crosses an end) never fill it, nonsense does."""

    def __init__(self, now: float) -> None:
        self._level = 0.0
        self._at = now

    def fault(self, now: float) -> bool:
        """Counts one fault; True when it is one too many."""
        self._level = max(0.0, self._level - FORGIVEN_A_S * (now - self._at)) + 1.0
        self._at = now
        return self._level > BURST
