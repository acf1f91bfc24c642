"""What this router's batch requests take of the workers: it gives way, so it uses up nobody's head-room."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from services.router.policy.preemption import Seat
from services.router.policy.speed import Floats


class _Row(IntEnum):
    CONTEXT = 0
    BLOCKS = 1


class Background:
    """Sums over batch requests by worker's position; positions are the fleet's. What waits and how many run
    workers tell themselves."""

    def __init__(self) -> None:
        self._sums = np.zeros((len(_Row), 0))
        self._seats: dict[int, tuple[int, Floats]] = {}

    def seated(self, seat: Seat, position: int) -> None:
        """A batch request is on a worker, its prompt still to compute."""
        cost = seat.cost
        self._put(seat, position, np.array([0, cost.kv_blocks], np.float64))

    def began(self, seat: Seat) -> None:
        """Its prompt is computed."""
        position, _ = self._seats.get(seat.ticket.number, (-1, None))
        if position >= 0:
            taken = np.array([seat.ticket.prefill_tokens, seat.cost.kv_blocks], np.float64)
            self._put(seat, position, taken)

    def left(self, number: int) -> None:
        """It has left its worker, or the worker has left with it."""
        position, taken = self._seats.pop(number, (-1, None))
        if taken is not None:
            self._sums[:, position] -= taken

    def context(self, width: int) -> Floats:
        """Tokens that their decodes read. [width]"""
        return self._row(_Row.CONTEXT, width)

    def blocks(self, width: int) -> Floats:
        """KV blocks. [width]"""
        return self._row(_Row.BLOCKS, width)

    def _put(self, seat: Seat, position: int, taken: Floats) -> None:
        self.left(seat.ticket.number)
        self._widen(position + 1)
        self._sums[:, position] += taken
        self._seats[seat.ticket.number] = (position, taken)

    def _row(self, row: _Row, width: int) -> Floats:
        self._widen(width)
        found: Floats = self._sums[row, :width]
        return found

    def _widen(self, width: int) -> None:
        missing = width - self._sums.shape[1]
        if missing > 0:
            self._sums = np.hstack([self._sums, np.zeros((len(_Row), missing))])
