"""Who sits where in one worker's session: slots, each with the attempt that it was given to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.router.relay.flight import Flight
from services.router.sessions.ledger import Booking

LAST_SLOT = 0xFFFFFFFF


@dataclass(slots=True)
class Occupied:
    """A slot that is taken until its worker says that the attempt is over."""

    attempt: int
    booking: Booking
    flight: Flight | None
    """None: cancelled here; the worker's terminal update is still to come."""


class Seats:
    """The slots of one session. `by_slot` is for who looks one up for every token."""

    def __init__(self) -> None:
        self.by_slot: dict[int, Occupied] = {}
        self._next_slot = 1

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

    def empty(self) -> dict[int, Occupied]:
        """Frees all slots; returns who sat where."""
        seats = self.by_slot.copy()
        self.by_slot.clear()
        return seats
