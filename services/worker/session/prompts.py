"""Prompts that are too long for one frame, put together from pieces that come in order."""

from __future__ import annotations

from typing import NamedTuple

from headrace.v1 import session_pb2

from services.worker.session.job import Job


class Arrival(NamedTuple):
    """A submission and the moment it came, in monotonic seconds: its times count from there."""

    job: Job
    submit: session_pb2.Submit
    at_s: float


class Assembly:
    """A prompt of which pieces are missing. Its length was checked: memory is bounded by it."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival

    def add(self, piece: session_pb2.PromptPiece) -> bool:
        """Appends a piece; False when it is not the one that follows."""
        ids = self.arrival.submit.prompt_ids
        fits = len(ids) + len(piece.ids) <= self.arrival.submit.prompt_tokens
        if piece.offset != len(ids) or not piece.ids or not fits:
            return False
        ids.extend(piece.ids)
        return True

    @property
    def complete(self) -> bool:
        """Whether the whole prompt is here."""
        return is_complete(self.arrival.submit)


def is_complete(submit: session_pb2.Submit) -> bool:
    """Whether a submission carries its whole prompt."""
    return len(submit.prompt_ids) == submit.prompt_tokens
