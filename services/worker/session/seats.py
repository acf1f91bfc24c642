"""A session's requests: by the slots that their router gave them, and until it knows their ends."""

from __future__ import annotations

from services.worker.session.gone import Gone
from services.worker.session.job import Job


class Seats:
    """Who has which slot."""

    def __init__(self) -> None:
        self.slots: dict[int, Job] = {}
        """By slot, until the terminal event is written."""
        self.jobs: dict[int, Job] = {}
        """By handle, until the terminal event is acknowledged."""
        self.gone = Gone()

    @property
    def empty(self) -> bool:
        """Whether the router knows the end of all."""
        return not (self.slots or self.jobs)

    def find(self, slot: int, attempt: int) -> Job | None:
        """Who has a slot, unless it is another attempt."""
        job = self.slots.get(slot)
        return job if job is not None and job.attempt == attempt else None

    def seat(self, job: Job) -> None:
        """The job has its slot from now on."""
        self.gone.take(job.slot, job.attempt)
        self.slots[job.slot] = job
        self.jobs[job.handle] = job

    def free(self, job: Job) -> None:
        """Its slot may be given to another."""
        if self.slots.get(job.slot) is job:
            del self.slots[job.slot]
        self.gone.add(job)

    def forget(self, job: Job) -> None:
        """Its router knows its end, or it goes on elsewhere."""
        self.jobs.pop(job.handle, None)
