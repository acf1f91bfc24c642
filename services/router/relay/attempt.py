"""What is said of an attempt to run a request: where it sits, how it goes, who is to blame for its end."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class Blame(Enum):
    """What a request may have to do with the death of its worker."""

    NONE = auto()
    SUSPECTED = auto()
    CONVICTED = auto()
    """It killed two."""


class Progress(Enum):
    """What an update led to, for the session that brought it."""

    ONGOING = auto()
    ENDED = auto()
    """Over, and the worker knows."""
    CUT = auto()
    """Over for the client; the worker must be told."""
    GAP = auto()
    """The attempt lost tokens: it must be cancelled and tried again."""
    LOST = auto()
    """The worker ended it without being asked: it must be tried again."""


class Claimable(NamedTuple):
    """What its Submits carry, so that another router can go on with a request; empty: none can."""

    key: bytes = b""
    state: bytes = b""


NOT_CLAIMABLE = Claimable()


class Seat(NamedTuple):
    """Where a flight runs: its slot in a worker's session."""

    worker_id: str
    slot: int
    numerics: bytes
    merges: bool = False
    """Whether its worker keeps tokens until as many are there as go to the client together."""


def numerics_label(numerics: bytes) -> frozenset[tuple[str, str]]:
    """A label of workers that compute alike bit by bit: what has begun prefers them."""
    return frozenset({("headrace/numerics", numerics.hex())})
