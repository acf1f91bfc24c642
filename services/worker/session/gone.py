"""Slots that became free a moment ago: a router that cancels one had not heard of its end yet.

Once for each: who cancels what it was told to be over, again and again, says what makes no sense.
"""

from __future__ import annotations

from services.worker.session.job import Job

MOST_GONE = 4096


class Gone:
    """The last ones of a session."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[int, int], None] = {}

    def add(self, job: Job) -> None:
        """The job has left its slot."""
        self._attempts[job.slot, job.attempt] = None
        if len(self._attempts) > MOST_GONE:
            del self._attempts[next(iter(self._attempts))]

    def take(self, slot: int, attempt: int) -> bool:
        """Whether this attempt has left the slot; afterwards it is forgotten."""
        return self._attempts.pop((slot, attempt), False) is None
