"""Between the engine and the sessions: submissions and cancels go in, reports go to whom they concern."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Protocol

from headrace.v1 import session_pb2, types_pb2

from services.worker.engine.base import EngineDescription
from services.worker.engine.report import StepReport, TokenReport
from services.worker.metrics import WorkerMetrics
from services.worker.scheduler.events import Rejected
from services.worker.scheduler.request import Merge, Request
from services.worker.session.books import Books
from services.worker.session.credits import Room
from services.worker.session.ends import RETURNED_FOR, ending, refused
from services.worker.session.hearing import Hearing
from services.worker.session.home import Home
from services.worker.session.intake import merge_of, to_request
from services.worker.session.job import Job
from services.worker.session.prefixes import Prefixes
from services.worker.session.prompts import Arrival
from services.worker.session.records import Record, Records, answer


class Engine(Protocol):
    """What the desk needs of an `EngineClient`."""

    description: EngineDescription

    def submit(self, request: Request) -> int:
        """Hand over a request; returns the number of this command."""

    def abort(self, handle: int) -> int:
        """End a request; returns the number of this command."""

    def merge(self, handle: int, merge: Merge | None) -> int:
        """Let a request's tokens go together otherwise; returns the number of this command."""

    def drain(self) -> int:
        """Have everything unfinished returned; returns the number of this command."""


class Desk:
    """All requests that the engine has, and the sessions that they belong to."""

    def __init__(self, engine: Engine, metrics: WorkerMetrics, leave: Callable[[float | None], None]) -> None:
        self.engine = engine
        self.metrics = metrics
        self.books = Books()
        self.prefixes = Prefixes(engine.description)
        self.records = Records()
        self.last_command = 0
        self.last_report: tuple[StepReport, float] | None = None
        self.draining_ms: int | None = None
        self.leave = leave
        self.idle = asyncio.Event()  # the engine has nothing of ours
        self.idle.set()
        self._handles = count(1)
        self._sessions = count(1)
        self._jobs: dict[int, Job] = {}  # the engine owes each a terminal event
        self._open: dict[int, Home] = {}
        self._hearing = Hearing(self._jobs)
        metrics.jobs.set_function(lambda: len(self._jobs))

    def new_handle(self) -> int:
        """A handle that was never used."""
        return next(self._handles)

    def new_session(self) -> int:
        """A session's number that was never used."""
        return next(self._sessions)

    def admit(self, session: Home, job: Job, submit: session_pb2.Submit) -> bool:
        """Charges a submission unless its session has no credit for it."""
        foreground = submit.latency_class != types_pb2.LATENCY_CLASS_BATCH
        return self.books.admit(session.number, job.handle, self.cost(submit), foreground=foreground)

    def cost(self, submit: session_pb2.Submit) -> Room:
        """What a submission takes of the window."""
        block_tokens = self.engine.description.spec.block_size
        delivered = submit.next_index
        tokens = submit.prompt_tokens + delivered - self.prefixes.cached_tokens(submit)
        length = submit.prompt_tokens + max(submit.expected_output_tokens, delivered + 1)
        return Room(tokens, 1, -(-length // block_tokens))

    def open(self, session: Home) -> None:
        """A session begins."""
        self._open[session.number] = session
        self.books.open(session.number)
        self.metrics.sessions.set(len(self._open))

    def close(self, session: Home) -> None:
        """A session ends; its jobs run on without a home."""
        self._hearing.dissolve()
        del self._open[session.number]
        self.books.close(session.number)
        for job in self._jobs.values():
            if job.home is session:
                job.home = None
        self.metrics.sessions.set(len(self._open))

    def submit(self, session: Home, arrival: Arrival) -> None:
        """Hands a complete, admitted submission to the engine."""
        job = arrival.job
        job.goes_on_after(arrival.submit.delivered_ids)
        self._jobs[job.handle] = job
        self.idle.clear()
        self.adopt(session, job)
        self._record(session, arrival)
        self.last_command = self.engine.submit(to_request(arrival, session.number))
        self.books.submitted(job.handle, self.last_command)

    def adopt(self, session: Home, job: Job) -> None:
        """News of the job go to this session."""
        job.home = session

    def claimed(self, claim: session_pb2.Claim, now: float) -> list[session_pb2.Claimed]:
        """What is known here of a request that some router looks for."""
        self._hearing.dissolve()
        record = self.records.find(claim.claim_key)
        orphaned = record is not None and record.owner.number not in self._open
        return answer(record, claim, now, orphaned=orphaned)

    def hand_over(self, session: Home, adopt: session_pb2.Adopt) -> Job | None:
        """Gives a claimed job to another session; None where it cannot go on there."""
        self._hearing.dissolve()
        record = self.records.find(adopt.claim_key)
        job = record.job if record is not None else None
        if record is None or job is None or job.handle != adopt.handle:
            return None
        before = job.slot, job.attempt
        if not job.adopt(adopt.slot, adopt.attempt, adopt.next_index):
            return None
        if job.holder is not None:
            job.holder.pop(job.handle, None)
        if record.owner.number in self._open:
            record.owner.lose(job, *before)
        self.records.move(adopt.claim_key, session)
        self.adopt(session, job)
        if job.handle in self._jobs:
            self.last_command = self.engine.merge(job.handle, merge_of(adopt.merge, described=job.described))
        self.metrics.adopted.inc()
        return job

    def _record(self, session: Home, arrival: Arrival) -> None:
        """Keeps what may be claimed. Sent anew by its client, what its lost router left is not wanted."""
        earlier = self.records.add(Record(arrival.job, arrival.submit, arrival.at_s, session))
        if earlier is not None and earlier.home is None:
            self.abandon(earlier)

    def abort(self, job: Job) -> None:
        """Has the engine end a job; its terminal event still comes."""
        if job.handle in self._jobs:
            self.last_command = self.engine.abort(job.handle)

    def abandon(self, job: Job) -> None:
        """Ends a job that nobody waits for."""
        job.home = None
        self.metrics.abandoned.inc()
        self.abort(job)

    def drain(self, remaining_ms: int) -> None:
        """Takes no new work from now on and says so; what runs goes on."""
        self.draining_ms = remaining_ms
        for session in list(self._open.values()):
            session.drain(remaining_ms)

    def report(self, report: StepReport | TokenReport, now: float) -> None:
        """Takes the engine's next report."""
        if isinstance(report, TokenReport):
            self._tokens(report)
            return
        self.last_report = (report, now)
        self.records.expire(now)
        self.prefixes.apply(report.kv)
        idle = not (report.load.running or report.load.waiting)
        self.books.report(report.credits, report.last_command, idle=idle)
        self._hearing.hear(report.outputs)
        self._terminals(report)
        self.metrics.report(report)
        for session in self._open.values():
            session.heard(report, now)

    def _tokens(self, report: TokenReport) -> None:
        self._hearing.hear(report.outputs)
        self.metrics.stepped(report.progress)
        for session in self._open.values():
            if session.line:
                session.news.set()

    def _terminals(self, report: StepReport) -> None:
        for finished in report.terminals.finished:
            job = self._jobs.get(finished.handle)
            self._end(finished.handle, ending(finished, job.waited_s if job is not None else 0.0))
        for rejected in report.terminals.rejected:
            self._reject(rejected)
        for returned in report.terminals.returned:
            self._give_back(returned.handle, session_pb2.RETURN_REASON_DRAINING, "")

    def _reject(self, rejected: Rejected) -> None:
        reason = RETURNED_FOR.get(rejected.reason)
        if reason is not None:
            self._give_back(rejected.handle, reason, rejected.message)
            return
        self._end(rejected.handle, refused(rejected))

    def _end(self, handle: int, end: session_pb2.SequenceEnd) -> None:
        job = self._pop(handle)
        if job is not None:
            job.end = end
            if job.home is not None:
                job.home.line[handle] = job
            job.home = None
            self._keep(job)
            self.metrics.ended(end)

    def _give_back(self, handle: int, reason: session_pb2.ReturnReason, message: str) -> None:
        job = self._pop(handle)
        if job is not None:
            job.returned = True
            if job.holder is not None:  # its router finds it gone, and goes on with it elsewhere
                job.holder.pop(handle, None)
            home, job.home = job.home, None
            self._keep(job)
            if home is not None:
                home.give_back(job, reason, message)

    def _keep(self, job: Job) -> None:
        if self.last_report is not None:
            self.records.ended(job, self.last_report[1])

    def _pop(self, handle: int) -> Job | None:
        self._hearing.dissolve()
        job = self._jobs.pop(handle, None)
        if not self._jobs:
            self.idle.set()
        return job
