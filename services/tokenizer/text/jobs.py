"""The jobs of a pool and the bounded queue in which they wait."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from services.tokenizer.text.errors import Overloaded
from services.tokenizer.text.items import Item, Outcome, item_chars

_CLOSING = "the pool is closing"


class Job:
    """Items, when they must be done (loop time, seconds), and the future of who waits for them."""

    def __init__(self, items: Sequence[Item], deadline_s: float) -> None:
        self.items = tuple(items)
        self.chars = sum(item_chars(item) for item in items)
        self.deadline_s = deadline_s
        self.attempts = 0
        self.outcomes: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.outcomes.done()

    def fail(self, error: Exception) -> None:
        if not self.outcomes.done():
            self.outcomes.set_exception(error)

    def succeed(self, outcomes: list[Outcome]) -> None:
        if not self.outcomes.done():
            self.outcomes.set_result(outcomes)


class JobQueue:
    """First in, first out, but what is tried again goes first. Jobs that were given up do not count."""

    def __init__(self, max_jobs: int, max_chars: int) -> None:
        self._max_jobs, self._max_chars = max_jobs, max_chars
        self._queue: asyncio.PriorityQueue[tuple[int, int, Job]] = asyncio.PriorityQueue()
        self._order = itertools.count()
        self._waiting: set[Job] = set()
        self._waiting_chars = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Job) -> None:
        """Add a job at the end.

        Raises:
            Overloaded: too many wait, or too much text does.
        """
        too_many = len(self._waiting) >= self._max_jobs
        if too_many or self._waiting_chars + job.chars > self._max_chars:
            raise Overloaded("too many texts are waiting to be encoded; try again")
        self._add(job, priority=1)

    def put_back(self, job: Job) -> None:
        """Add a job that was already taken once, before all others; always."""
        self._add(job, priority=0)

    async def get(self) -> Job:
        """The next job that somebody still waits for. Cancelling takes nothing out."""
        while True:
            job = (await self._queue.get())[2]
            if job in self._waiting:
                self._take(job)
                return job

    def give_up(self, job: Job) -> None:
        """Nobody waits for `job` any more: its place and its memory are free."""
        if job in self._waiting:
            self._take(job)
            job.items = ()

    def close(self) -> None:
        """Fail all that wait, and refuse what comes."""
        self._max_jobs = 0
        for job in list(self._waiting):
            self.give_up(job)
            job.fail(Overloaded(_CLOSING))

    def _add(self, job: Job, priority: int) -> None:
        self._waiting.add(job)
        self._waiting_chars += job.chars
        self._queue.put_nowait((priority, next(self._order), job))

    def _take(self, job: Job) -> None:
        self._waiting.remove(job)
        self._waiting_chars -= job.chars
