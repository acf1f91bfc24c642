"""Prompts, and output that a client has, put together from pieces where they are too long for one frame."""

from __future__ import annotations

from typing import NamedTuple

from headrace.v1 import session_pb2

from services.worker.session.job import Job

NEXT_PIECE_S = 10.0
"""From one piece to the next, at most: what waits for one holds credit that others could use."""


class Arrival(NamedTuple):
    """A submission and the moment it came, in monotonic seconds: its times count from there."""

    job: Job
    submit: session_pb2.Submit
    at_s: float


class Assembly:
    """A submission of which ids are missing. Their number was checked: memory is bounded by it."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self._due_s = arrival.at_s + NEXT_PIECE_S

    def overdue(self, now: float) -> bool:
        """Whether the next piece has not come in time."""
        return now > self._due_s

    def add(self, piece: session_pb2.PromptPiece, now: float) -> bool:
        """Appends a piece; False when it is not the one that follows."""
        self._due_s = now + NEXT_PIECE_S
        submit = self.arrival.submit
        ids, before, whole = submit.prompt_ids, 0, submit.prompt_tokens
        if len(ids) == whole:
            ids, before, whole = submit.delivered_ids, submit.prompt_tokens, submit.next_index
        fits = len(ids) + len(piece.ids) <= whole
        if piece.offset != before + len(ids) or not piece.ids or not fits:
            return False
        ids.extend(piece.ids)
        return True

    @property
    def complete(self) -> bool:
        """Whether all ids are here."""
        return is_complete(self.arrival.submit)


def is_complete(submit: session_pb2.Submit) -> bool:
    """Whether a submission carries all ids: of its prompt, and of the output that its client has."""
    return len(submit.prompt_ids) == submit.prompt_tokens and len(submit.delivered_ids) == submit.next_index
