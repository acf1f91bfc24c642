"""What to do about a call that failed: ask again, take the stream up elsewhere, or tell the caller. Pure.

    nothing arrived   refused, with a time to retry       the same again after that time
                      nobody is at the address            the next address at once, each once
                      somebody, but no connection         the same again: a router ended, or is too busy
                      the connection broke                the rest, from token 0
    tokens arrived    the connection broke                the rest, from the next token
    asked for it      nothing is left                     the whole request again, under its name; once where
                                                          tokens arrived: it is reproducible, by its seed
                      no router there, or a busy one      again, for as long as workers keep what routers lost

A refusal in the mesh's own words is final, but for UNAVAILABLE: a router that stops hands its streams on.
Who asked not to wait (`do_not_queue`) is told every refusal at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum, auto
from math import inf
from typing import NamedTuple

import grpc

from headrace import errors

WINDOW_S = 10.0
"""Workers go on for 5 s with what a lost router left, and keep it for 5 s more: then nothing is left."""
ALIVE_S = 8.0
"""A call that lasted longer was with a router that lived and had the request: one that is silent is noticed
within 4 s, and no search takes as long. So what broke before is mended, though a wait brings no token."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5
STOPS = "ROUTER_STOPS"
DRAINING = "DRAINING"
_BREAKS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)
_NOT_REACHED = ("failed to connect", "DNS resolution failed")
_NOBODY = ("Connection refused", "No such file or directory", "DNS resolution failed")


class Ask(Enum):
    """What to ask for next."""

    AGAIN = auto()
    """The whole request."""
    REST = auto()
    """What is left of it from the next token on."""


class Step(NamedTuple):
    """Ask for this after a pause."""

    ask: Ask
    pause_s: float
    elsewhere: bool
    """On another connection: this one is no good."""


class Recovery:
    """The failures of one request. `step` says what follows each, or raises.

    Args:
        waits: whether a refusal that says when to ask again is waited for.
    """

    def __init__(
        self, addresses: int = 1, jitter: Callable[[], float] = random.random, *, waits: bool = True
    ) -> None:
        self.retries = 0
        self.resumes = 0
        self._untried = addresses - 1
        self._waits = waits
        self._refusal: errors.HeadraceError | None = None
        self._again_s: float | None = None
        self._made_again = False
        self._tried_s: float | None = None
        self._jitter = jitter
        self._break: errors.HeadraceError | None = None
        self._broke_s = 0.0
        self._asked_s = inf
        self._pause_s = FIRST_PAUSE_S

    @property
    def broken(self) -> bool:
        """Whether what broke is not yet mended."""
        return self._break is not None

    def arrived(self) -> None:
        """There is output: what broke is mended."""
        self._break = None

    def asked(self, now: float) -> None:
        """A call begins on a connection that is there."""
        self._asked_s = now

    def step(self, error: errors.HeadraceError, arrived_tokens: int, now: float) -> Step:
        """What follows a failure when so much had arrived. Raises HeadraceError where nothing does."""
        lasted_s, self._asked_s = now - self._asked_s, inf
        if self._break is not None and isinstance(error, errors.NotFound):
            return self._nothing_left(arrived_tokens, now)
        if self._break is None or lasted_s > ALIVE_S:
            return self._first(error, arrived_tokens, now)
        if not _passing(error) or now >= self._broke_s + WINDOW_S:
            raise self._break from error
        return self._rest(error)

    def _first(self, error: errors.HeadraceError, arrived_tokens: int, now: float) -> Step:
        if not arrived_tokens and (refused := self._refused(error, now)) is not None:
            return refused
        unreached = not arrived_tokens and _not_reached(error)
        if unreached or not (_broke(error) or (arrived_tokens and isinstance(error, errors.Unavailable))):
            raise self._told(error)
        self._break, self._broke_s, self._pause_s = error, now, FIRST_PAUSE_S
        return self._rest(error)

    def _refused(self, error: errors.HeadraceError, now: float) -> Step | None:
        """Before the first token: a refusal that says when, or an address where nobody takes requests."""
        if _not_reached(error) and self._untried > 0:
            self._untried -= 1
            return Step(Ask.AGAIN, 0.0, elsewhere=True)
        pause_s = error.pause_s
        if error.reason == DRAINING or self._still_there(error, now) or self._hardly_reached(error, now):
            pause_s = self._pause()
        elif pause_s is None or error.reason == STOPS or not self._waits:
            return None
        else:
            self._refusal = error
        self.retries += 1
        return Step(Ask.AGAIN, pause_s, elsewhere=error.reason == DRAINING or not error.reason)

    def _told(self, error: errors.HeadraceError) -> errors.HeadraceError:
        """The error, with what was in the way where nothing but time ran out."""
        refusal = self._refusal
        if refusal is None or error.reason or not isinstance(error, errors.DeadlineExceeded):
            return error
        told = errors.DeadlineExceeded(f"{error}; refused until then: {refusal}", code=error.code)
        told.reason, told.__cause__ = refusal.reason, refusal
        return told

    def _hardly_reached(self, error: errors.HeadraceError, now: float) -> bool:
        """Whether there is somebody, who may be reached if tried for a while."""
        if not _not_reached(error) or any(each in str(error) for each in _NOBODY):
            return False
        self._tried_s = now if self._tried_s is None else self._tried_s
        return now < self._tried_s + WINDOW_S

    def _still_there(self, error: errors.HeadraceError, now: float) -> bool:
        """Whether a router has not yet noticed that the call before this one is gone."""
        recent = self._again_s is not None and now < self._again_s + WINDOW_S
        return recent and isinstance(error, errors.Conflict)

    def _rest(self, error: errors.HeadraceError) -> Step:
        self.resumes += 1
        elsewhere = isinstance(error, errors.Unavailable) or not error.reason
        return Step(Ask.REST, self._pause(), elsewhere)

    def _pause(self) -> float:
        """A little longer each time, and not the same for all who lost one router."""
        pause_s, self._pause_s = self._pause_s, min(LONGEST_PAUSE_S, 2 * self._pause_s)
        return pause_s * (0.5 + self._jitter() / 2)

    def _nothing_left(self, arrived_tokens: int, now: float) -> Step:
        broke = self._break
        assert broke is not None
        if arrived_tokens and self._made_again:
            message = f"the answer broke off after {arrived_tokens} tokens and nothing is left of it: {broke}"
            raise errors.StreamLost(message, code=grpc.StatusCode.ABORTED, reason="STREAM_LOST") from broke
        self.retries += 1
        self._made_again = self._made_again or arrived_tokens > 0
        self._break, self._again_s = None, now
        return Step(Ask.AGAIN, 0.0, elsewhere=False)


def _broke(error: errors.HeadraceError) -> bool:
    """Whether the transport failed, or a router that stops says so."""
    return (error.code in _BREAKS and not error.reason) or error.reason == STOPS


def _not_reached(error: errors.HeadraceError) -> bool:
    return isinstance(error, errors.Unavailable) and str(error).startswith(_NOT_REACHED)


def _passing(error: errors.HeadraceError) -> bool:
    """Whether the next attempt to take a stream up may go better."""
    return _broke(error) or isinstance(error, errors.Unavailable | errors.Conflict | errors.Exhausted)
