"""A claimed request as a worker tells it, put together from its pieces; what cannot be true is refused."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from headrace.v1 import session_pb2, types_pb2

from services.router.chains import packed

if TYPE_CHECKING:
    from services.router.sessions.session import Session

MOST_IDS = 4 << 20
MOST_ATTEMPTS = 1 << 30


class Nonsense(Exception):
    """What a worker said of a claim contradicts itself."""


class Found(NamedTuple):
    """A request at a worker."""

    session: Session
    submit: session_pb2.Submit
    handle: int
    prompt: array[int]
    output: array[int]
    first_logprob: int
    logprobs: Sequence[types_pb2.PositionLogprobs]
    """From output index `first_logprob` to the end of the output, where they were asked for."""
    end: session_pb2.SequenceEnd | None
    orphaned: bool
    """No router has it."""

    @property
    def attempt(self) -> int:
        """Its latest attempt."""
        return self.submit.attempt

    @property
    def running(self) -> bool:
        """Whether the worker goes on with it."""
        return self.end is None


class Gathering:
    """The pieces of one worker's answer, in order."""

    def __init__(self, session: Session) -> None:
        self.found: Found | None = None
        """Once complete; None also where it has no such request."""
        self._session = session
        self._head: session_pb2.Claimed | None = None
        self._ids = packed(())
        self._first_logprob = 0
        self._logprobs: list[types_pb2.PositionLogprobs] = []

    def add(self, piece: session_pb2.Claimed) -> bool:
        """Takes a piece; returns whether it was the last. Raises Nonsense."""
        if not piece.found:
            return True
        if self._head is None:
            self._head = piece
        elif piece.HasField("submit"):
            raise Nonsense
        self._take(piece)
        if piece.last:
            self._complete(self._head)
        return piece.last

    def _take(self, piece: session_pb2.Claimed) -> None:
        if piece.ids:
            if piece.offset != len(self._ids) or len(self._ids) + len(piece.ids) > MOST_IDS:
                raise Nonsense
            self._ids.extend(piece.ids)
        if piece.logprobs:
            if not self._logprobs:
                self._first_logprob = piece.first_logprob
            if piece.first_logprob != self._first_logprob + len(self._logprobs):
                raise Nonsense
            self._logprobs.extend(piece.logprobs)

    def _complete(self, head: session_pb2.Claimed) -> None:
        prompt, output = head.submit.prompt_tokens, head.output_tokens
        consistent = (
            head.HasField("submit")
            and prompt > 0
            and prompt + output == len(self._ids)
            and 0 < head.submit.attempt < MOST_ATTEMPTS
            and head.submit.claim_key == head.claim_key
            and len(self._logprobs) <= output
            and (not self._logprobs or self._first_logprob + len(self._logprobs) == output)
        )
        if not consistent:
            raise Nonsense
        self.found = Found(
            session=self._session,
            submit=head.submit,
            handle=head.handle,
            prompt=self._ids[:prompt],
            output=self._ids[prompt:],
            first_logprob=self._first_logprob if self._logprobs else output,
            logprobs=self._logprobs,
            end=head.end if head.HasField("end") else None,
            orphaned=head.orphaned,
        )
