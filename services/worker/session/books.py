"""The window of a worker twice: for all work, and for foreground work, which may take what batch work holds.

A foreground request is charged to both, so that batch work never counts on a place that is taken; a batch
request is charged to the first alone, for whatever it has is given up when foreground work needs it.
"""

from __future__ import annotations

from typing import NamedTuple

from services.worker.scheduler.events import Credits
from services.worker.session.credits import CreditBook, Demand, Room


class Grant(NamedTuple):
    """Credit to send in a frame."""

    all: Room
    foreground: Room


class Books:
    """The accounts of all sessions of a worker, for both kinds of work."""

    def __init__(self) -> None:
        self._all = CreditBook()
        self._foreground = CreditBook()

    def open(self, session: int) -> None:
        """A session begins, without credit until its first grant."""
        for book in self._both:
            book.open(session)

    def close(self, session: int) -> None:
        """A session ends: its grants are void, what it submitted stays."""
        for book in self._both:
            book.close(session)

    def report(self, credits: Credits, last_command: int, *, idle: bool) -> None:
        """The engine can start `credits` more than all it was given up to `last_command`."""
        window = Room(credits.prefill_tokens, credits.slots, credits.blocks)
        self._all.report(window, last_command, idle=idle)
        self._foreground.report(Room(*credits.foreground), last_command, idle=idle)

    def demand(self, session: int, demand: Demand, foreground: Demand) -> None:
        """What waits in a session's router: in all, and of foreground work."""
        self._all.demand(session, demand)
        self._foreground.demand(session, foreground)

    def admit(self, session: int, key: int, cost: Room, *, foreground: bool) -> bool:
        """Charges a submission, named `key`, unless the session has no credit for its kind of work."""
        if not foreground:
            return self._all.admit(session, key, cost)
        if admitted := self._foreground.admit(session, key, cost):
            self._all.charge(session, key, cost)
        return admitted

    def submitted(self, key: int, command: int) -> None:
        """A charged request went to the engine as `command`: from its report on, the window says it."""
        for book in self._both:
            book.submitted(key, command)

    def released(self, key: int) -> None:
        """A charged request will never go to the engine."""
        for book in self._both:
            book.released(key)

    def grant(self, session: int, frame: int) -> Grant:
        """Credit to send in `frame`, counted from the last report on, as the wire wants it."""
        return Grant(self._all.grant(session, frame), self._foreground.grant(session, frame))

    def acknowledged(self, session: int, frame: int) -> None:
        """The router has handled `frame`: it uses no grant from before it any more."""
        for book in self._both:
            book.acknowledged(session, frame)

    @property
    def changes(self) -> int:
        """Stands still while grants need not be told again."""
        return self._all.changes + self._foreground.changes

    @property
    def _both(self) -> tuple[CreditBook, CreditBook]:
        return self._all, self._foreground
