"""Prefixes that are asked for again and again, and which of their requests make a second copy."""

from __future__ import annotations

from services.router.policy.ticket import Ticket

WINDOW_S = 60.0
_PREFIX_SHARE = 0.8
_KEPT = 4096


class HotPrefixes:
    """Counts repeats within a minute. One of every 1/share requests with a hot prefix replicates it."""

    def __init__(self, share: float, after: int) -> None:
        self._share = share
        self._after = after
        self._counts: dict[int, int] = {}
        self._since = float("-inf")
        self._due = 0.0

    def replicates(self, ticket: Ticket, now: float) -> bool:
        """Counts a request that found its prefix; whether it is to go where the prefix is not."""
        if not self._share or not ticket.chains:
            return False
        if self._count(ticket, now) <= self._after:
            return False
        self._due += self._share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def _count(self, ticket: Ticket, now: float) -> int:
        if not 0 <= now - self._since < WINDOW_S or len(self._counts) >= _KEPT:
            self._counts.clear()
            self._since = now
        digests = next(iter(ticket.chains.values()))
        if not len(digests):
            return 0
        name = int(digests[int(_PREFIX_SHARE * (len(digests) - 1)), 0])
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return count
