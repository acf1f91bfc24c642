"""Who sits where in one worker's session: slots, each with the attempt that it was given to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.router.relay.flight import Flight
from services.router.sessions.ledger import Booking

LAST_SLOT = 0xFFFFFFFF
ANSWER_S = 5.0
"""From a worker's word that it has heard a cancel to that the attempt is over; it takes a frame or two."""


@dataclass(slots=True)
class Occupied:
    """A slot that is taken until its worker says that the attempt is over."""

    attempt: int
    booking: Booking
    flight: Flight | None
    """None: cancelled here; the worker's terminal update is still to come."""


@dataclass(slots=True)
class _Cancelled:
    """Until the worker has ended it: the command that says so, and when that was first known to be heard."""

    command: Booking
    heard_s: float | None = None


class Seats:
    """The slots of one session. `by_slot` is for who looks one up for every token."""

    def __init__(self) -> None:
        self.by_slot: dict[int, Occupied] = {}
        self._next_slot = 1
        self._cancelled: dict[int, _Cancelled] = {}  # in the order of the commands

    def __len__(self) -> int:
        return len(self.by_slot)

    def __iter__(self) -> Iterator[Occupied]:
        return iter(list(self.by_slot.values()))

    def flights(self) -> list[Flight]:
        """The requests that are seated and still wanted."""
        return [seat.flight for seat in self.by_slot.values() if seat.flight is not None]

    def free_slot(self) -> int:
        """A slot that nobody has, another one each time."""
        while True:
            slot = self._next_slot
            self._next_slot = slot % LAST_SLOT + 1
            if slot not in self.by_slot:
                return slot

    def take(self, slot: int, seat: Occupied) -> None:
        """Seats an attempt."""
        self.by_slot[slot] = seat

    def free(self, slot: int) -> None:
        """The attempt in a slot is over at the worker."""
        del self.by_slot[slot]
        self._cancelled.pop(slot, None)

    def cancel(self, slot: int, command: Booking) -> int:
        """Nobody wants the attempt in a slot any more; `command` tells the worker. Returns its number."""
        seat = self.by_slot[slot]
        seat.flight = None
        self._cancelled[slot] = _Cancelled(command)
        return seat.attempt

    def unanswered(self, heard: int, now: float) -> list[int]:
        """Slots of cancelled attempts of which the worker says nothing, ANSWER_S after it heard of them.

        Args:
            heard: number of the last command frame that the worker has acknowledged.
        """
        found = []
        for slot, cancelled in self._cancelled.items():
            number = cancelled.command.number
            if number is None or number > heard:
                break
            if cancelled.heard_s is None:
                cancelled.heard_s = now
            elif now - cancelled.heard_s > ANSWER_S:
                found.append(slot)
        return found

    def empty(self) -> dict[int, Occupied]:
        """Frees all slots; returns who sat where."""
        seats = self.by_slot.copy()
        self.by_slot.clear()
        self._cancelled.clear()
        return seats
