"""What was submitted to a worker and is not yet part of what it reports."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from services.router.policy import Cost


@dataclass(slots=True)
class Booking:
    """One submission. `number` is that of the frame it left with; None while it waits to leave."""

    cost: Cost
    number: int | None = None
    foreground: bool = True
    """Of another class than BATCH: it may have what batch work holds."""


class Ledger:
    """Submissions since the command that the last report acknowledges, in order."""

    def __init__(self) -> None:
        self._open: deque[Booking] = deque()
        self.prefill_tokens = 0
        self.kv_blocks = 0

    @property
    def sequences(self) -> int:
        """Submissions that are not acknowledged."""
        return len(self._open)

    def add(self, booking: Booking) -> None:
        """Notes a submission."""
        self._open.append(booking)
        self.prefill_tokens += booking.cost.prefill_tokens
        self.kv_blocks += booking.cost.kv_blocks

    def acknowledge(self, number: int) -> None:
        """Drops all submissions that left with frame `number` or before."""
        while self._open and self._open[0].number is not None and self._open[0].number <= number:
            booking = self._open.popleft()
            self.prefill_tokens -= booking.cost.prefill_tokens
            self.kv_blocks -= booking.cost.kv_blocks
