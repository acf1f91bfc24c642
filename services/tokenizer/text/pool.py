"""A pool of processes that encode and render: what takes too long is killed, and nothing else suffers.

    run(items) ─▶ bounded queue ─▶ slot ─▶ process     one slot a process; a slot replaces its process
                                                       when it died or its job ran past the deadline

Tenants take turns, and half of the slots take short jobs only: a chat waits for no book. Time that a job
waits for a slot is not its own.

A job that meets a dying process is tried once more on another: it may have been the innocent one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from services.common import logs
from services.tokenizer.text.bounds import PoolLimits, PoolStatistics
from services.tokenizer.text.encoder import EncoderStatistics
from services.tokenizer.text.errors import CannotStart, Overloaded, ProcessLost, TimedOut
from services.tokenizer.text.items import Item, Outcome, TextSpec
from services.tokenizer.text.jobs import Job, JobQueue
from services.tokenizer.text.process import ProcessSpec
from services.tokenizer.text.supervised import ProcessDied, SupervisedProcess
from services.tokenizer.text.wire import pack_request

_ATTEMPTS = 2
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.1, 5.0
_REAP_TIMEOUT_S, _REAP_POLL_S = 2.0, 0.01


class TextPool:
    """`async with TextPool(spec) as pool: await pool.run(items, timeout_s)`, or `start` and `close`."""

    def __init__(self, spec: TextSpec, limits: PoolLimits | None = None) -> None:
        self._limits = limits or PoolLimits()
        self._spec_frame = pack_request(ProcessSpec(spec, self._limits.memory_bytes))
        self._queue = JobQueue(self._limits.queued_jobs, self._limits.queued_chars, self._limits.long_chars)
        self._slots: list[asyncio.Task[None]] = []
        self._processes: dict[SupervisedProcess, EncoderStatistics] = {}
        self._killed: list[SupervisedProcess] = []
        self._busy = self._timeouts = self._deaths = self._refused = self._past_mismatches = 0
        self._log = logs.get(__name__)

    async def start(self) -> None:
        """Start all processes and return when they are ready.

        Raises:
            CannotStart: one of them cannot load the tokenizer.
        """
        starts = [asyncio.ensure_future(self._start_process()) for _ in range(self._limits.processes)]
        try:
            processes = await asyncio.gather(*starts)
        except BaseException:
            await _cancelled(starts)
            await self.close()
            raise
        with_long = max(1, len(processes) // 2)
        self._slots = [
            asyncio.create_task(self._run_slot(process, long_too=slot < with_long))
            for slot, process in enumerate(processes)
        ]

    async def close(self) -> None:
        """End all processes; jobs that wait or run fail with Overloaded. Takes two seconds at most."""
        self._queue.close()
        await _cancelled(self._slots)
        for process in list(self._processes):
            self._end(process)
        await self._reap_all()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, items: Sequence[Item], timeout_s: float, tenant: bytes = b"") -> list[Outcome]:
        """Encode a batch in one process; the outcomes stand in the order of the items.

        A bad item fails alone; time runs out for the batch as a whole, from when a process begins. Cancelling
        takes the job out of the queue; one that already runs is left to end or to meet its deadline.

        Args:
            tenant: whose items they are; all who give none are one.

        Raises:
            Overloaded: too much is waiting, no process was free for long, or the pool is closed.
            TimedOut: `timeout_s` passed.
            ProcessLost: two processes died over it.
        """
        job = Job(items, timeout_s, tenant)
        self._enqueue(job)
        try:
            return await self._outcomes(job)
        finally:
            self._queue.give_up(job)
            job.outcomes.cancel()

    def pids(self) -> list[int]:
        """The process ids of the processes that are loaded."""
        return [process.pid for process in self._processes]

    def statistics(self) -> PoolStatistics:
        """The counts so far."""
        mismatches = self._past_mismatches + sum(each.mismatches for each in self._processes.values())
        return PoolStatistics(
            processes=len(self._processes),
            busy=self._busy,
            queued=len(self._queue),
            timeouts=self._timeouts,
            deaths=self._deaths,
            refused=self._refused,
            mismatches=mismatches,
        )

    async def _outcomes(self, job: Job) -> list[Outcome]:
        events: list[asyncio.Future[Any]] = [job.begun, job.outcomes]
        await asyncio.wait(events, timeout=self._limits.wait_s, return_when=asyncio.FIRST_COMPLETED)
        if not (job.begun.done() or job.outcomes.done()):
            raise Overloaded(f"no process was free to encode for {self._limits.wait_s:g} s; try again")
        if job.outcomes.done():
            return job.outcomes.result()
        try:
            async with asyncio.timeout_at(job.deadline_s):
                return await job.outcomes
        except TimeoutError:
            raise TimedOut(f"encoding took longer than {job.timeout_s:g} s") from None

    def _enqueue(self, job: Job) -> None:
        try:
            self._queue.put(job)
        except Overloaded:
            self._refused += 1
            raise

    async def _run_slot(self, process: SupervisedProcess | None, *, long_too: bool) -> None:
        while True:
            if process is None:
                process = await self._replacement()
            job = await self._next_job(process, long_too)
            if job is None:
                self._note_death(process)
            if job is None or not await self._serve(process, job):
                self._end(process)
                process = None

    async def _next_job(self, process: SupervisedProcess, long_too: bool) -> Job | None:
        """The next job; None when the process dies while there is none."""
        getter = asyncio.ensure_future(self._queue.get(long_too=long_too))
        waited: set[asyncio.Future[Any]] = {getter, process.died}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            return getter.result() if getter.done() else None
        finally:
            getter.cancel()

    async def _serve(self, process: SupervisedProcess, job: Job) -> bool:
        """Run the job; whether the process is still good."""
        self._busy += 1
        try:
            return await self._ask(process, job)
        except TimeoutError:
            self._timeouts += 1
            self._log.warning("tokenizer process killed at a deadline", pid=process.pid)
        except ProcessDied:
            self._note_death(process)
            self._try_again(job)
        except asyncio.CancelledError:
            job.fail(Overloaded("the pool is closing"))
            raise
        finally:
            self._busy -= 1
        return False

    async def _ask(self, process: SupervisedProcess, job: Job) -> bool:
        if job.is_over:
            return True
        now_s = asyncio.get_running_loop().time()
        job.begin(now_s)
        limit_s = max(job.deadline_s - now_s, self._limits.min_run_s)
        async with asyncio.timeout(limit_s):
            reply = await process.encode(job.items, limit_s)
        self._note(process, reply.statistics)
        job.succeed(reply.outcomes)
        return True

    def _try_again(self, job: Job) -> None:
        if job.attempts >= _ATTEMPTS:
            job.fail(ProcessLost("the processes that encoded this text died"))
        elif not job.is_over:
            self._queue.put_back(job)

    async def _replacement(self) -> SupervisedProcess:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                return await self._start_process()
            except (CannotStart, OSError) as error:
                self._log.error("tokenizer process cannot start", reason=str(error), retry_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LAST_BACKOFF_S)

    async def _start_process(self) -> SupervisedProcess:
        process = await SupervisedProcess.start(self._spec_frame, self._limits.start_timeout_s)
        self._processes[process] = process.statistics
        return process

    def _note(self, process: SupervisedProcess, now: EncoderStatistics) -> None:
        if now.mismatches > self._processes[process].mismatches:
            self._log.warning("fast tokenizer is off in a process", reason=now.why_not, pid=process.pid)
        self._processes[process] = now

    def _note_death(self, process: SupervisedProcess) -> None:
        self._deaths += 1
        self._log.warning("tokenizer process died", pid=process.pid)

    def _end(self, process: SupervisedProcess) -> None:
        process.kill()
        self._past_mismatches += self._processes.pop(process).mismatches
        self._killed = [each for each in [*self._killed, process] if not each.is_reaped()]

    async def _reap_all(self) -> None:
        end_s = asyncio.get_running_loop().time() + _REAP_TIMEOUT_S
        while not all(process.is_reaped() for process in self._killed):
            if asyncio.get_running_loop().time() > end_s:
                return
            await asyncio.sleep(_REAP_POLL_S)


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Cancel the tasks and wait until they have ended, however they do."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
