"""The jobs of a pool and the bounded queue in which they wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from services.tokenizer.text.errors import Overloaded
from services.tokenizer.text.items import Item, Outcome, item_chars
from services.tokenizer.text.turns import Turns

_CLOSING = "the pool is closing"
_TENANT_SHARE = 2
"""Of all that may wait, one tenant has at most one part in so many."""


class Job:
    """Items, how long they may take (seconds), and the future of who waits for them.

    The time runs from when a process begins; `deadline_s` is loop time.
    """

    def __init__(self, items: Sequence[Item], timeout_s: float, tenant: bytes = b"") -> None:
        loop = asyncio.get_running_loop()
        self.items = tuple(items)
        self.chars = sum(item_chars(item) for item in items)
        self.tenant = tenant
        self.timeout_s = timeout_s
        self.deadline_s = 0.0
        self.attempts = 0
        self.begun: asyncio.Future[None] = loop.create_future()
        self.outcomes: asyncio.Future[list[Outcome]] = loop.create_future()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.outcomes.done()

    def begin(self, now_s: float) -> None:
        """A process begins; for a job that is tried again the time runs on."""
        self.attempts += 1
        if not self.begun.done():
            self.deadline_s = now_s + self.timeout_s
            self.begun.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.outcomes.done():
            self.outcomes.set_exception(error)

    def succeed(self, outcomes: list[Outcome]) -> None:
        if not self.outcomes.done():
            self.outcomes.set_result(outcomes)


class JobQueue:
    """Short jobs and long ones, each in turns of their tenants. Jobs that were given up do not count.

    Who takes both kinds takes them alternately; who takes short ones only is never behind a long one.
    """

    def __init__(self, max_jobs: int, max_chars: int, long_chars: int) -> None:
        self._max_jobs, self._max_chars, self._long_chars = max_jobs, max_chars, long_chars
        self._short: Turns[Job] = Turns()
        self._long: Turns[Job] = Turns()
        self._last_was_long = False
        self._takers: dict[asyncio.Future[None], bool] = {}  # whether it takes long ones
        self._waiting: set[Job] = set()
        self._jobs: Counter[bytes] = Counter()
        self._chars: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Job) -> None:
        """Add a job at the end of its tenant's line.

        Raises:
            Overloaded: too many wait, or too much text does, of this tenant or in all.
        """
        share = _TENANT_SHARE if job.tenant else 1
        too_many = len(self._waiting) >= self._max_jobs or self._jobs[job.tenant] * share >= max(
            self._max_jobs, share
        )
        chars, own = self._chars.total() + job.chars, self._chars[job.tenant] + job.chars
        if too_many or chars > self._max_chars or own * share > self._max_chars:
            raise Overloaded("too many texts are waiting to be encoded; try again")
        self._line(job).add(job.tenant, job)
        self._count(job)

    def put_back(self, job: Job) -> None:
        """Add a job that was already taken once, before all others; always."""
        self._line(job).add_again(job)
        self._count(job)

    async def get(self, *, long_too: bool) -> Job:
        """The next job that somebody still waits for. Cancelling takes nothing out."""
        while not (self._short or (long_too and self._long)):
            taker = asyncio.get_running_loop().create_future()
            self._takers[taker] = long_too
            try:
                await taker
            finally:
                del self._takers[taker]
        job = self._next(long_too)
        self._uncount(job)
        return job

    def give_up(self, job: Job) -> None:
        """Nobody waits for `job` any more: its place and its memory are free."""
        if job in self._waiting:
            self._line(job).remove(job.tenant, job)
            self._uncount(job)
            job.items = ()

    def close(self) -> None:
        """Fail all that wait, and refuse what comes."""
        self._max_jobs = 0
        for job in list(self._waiting):
            self.give_up(job)
            job.fail(Overloaded(_CLOSING))

    def _next(self, long_too: bool) -> Job:
        take_long = long_too and bool(self._long) and not (self._short and self._last_was_long)
        if long_too:
            self._last_was_long = take_long
        return (self._long if take_long else self._short).take()

    def _line(self, job: Job) -> Turns[Job]:
        return self._long if job.chars > self._long_chars else self._short

    def _count(self, job: Job) -> None:
        self._waiting.add(job)
        self._jobs[job.tenant] += 1
        self._chars[job.tenant] += job.chars
        for taker in self._takers:
            if not taker.done():
                taker.set_result(None)

    def _uncount(self, job: Job) -> None:
        self._waiting.remove(job)
        self._jobs[job.tenant] -= 1
        self._chars[job.tenant] -= job.chars
        if not self._jobs[job.tenant]:
            del self._jobs[job.tenant], self._chars[job.tenant]
