"""Where a session takes its news: the dispatcher, as sessions see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from headrace.v1 import session_pb2

from services.router.relay.attempt import Blame
from services.router.relay.flight import Flight

if TYPE_CHECKING:
    from services.router.sessions.session import Session


class Floor(Protocol):
    """What a session needs of the dispatcher."""

    def changed(self, session: Session) -> None:
        """The session may take more or other work than before."""

    def again(self, flight: Flight) -> None:
        """The flight has left its seat and wants another."""

    def lost(self, flight: Flight, blame: Blame = Blame.NONE) -> None:
        """The flight's attempt failed under it."""

    def leaves(self, flight: Flight) -> None:
        """The flight has left a worker that others are to stand in for, without harm."""

    def streamed(self, made: Mapping[Flight, int], now: float) -> None:
        """Flights got so many output tokens; told before any of them ends, and before `served` of them."""

    def over(self, flight: Flight) -> None:
        """The flight has ended, and its seat is free."""

    def claimed(self, session: Session, piece: session_pb2.Claimed) -> None:
        """What the worker says of a request that is looked for."""

    def served(self, session: Session, told: Iterable[session_pb2.TenantService], now: float) -> None:
        """What the worker has done for tenants in all."""
