"""Everything that one router is still to be told, merged until it can be written, then cut into frames.

While a write is under way later steps only mark what has news: the output itself stays in its job, so memory
is bounded by tokens, not by frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import NamedTuple, Self

from headrace.v1 import session_pb2

from services.worker.engine.report import StepReport
from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.events import KVEvents, Served
from services.worker.session.home import Columns
from services.worker.session.job import Job
from services.worker.session.prefixes import NAME_BYTES

LARGE_BYTES = 28 << 10  # a frame beyond this takes no further part; each has at most 30 KiB: 64 KiB in all
SMALL_BYTES = 8 << 10  # a frame beyond this takes no piece of a snapshot, which has 48 KiB
NEXT_BYTES = 20  # of one new id in columns, at most
NEXT_A_FRAME = LARGE_BYTES // NEXT_BYTES
STATE_BYTES = 512  # of numbers, load, credits, progress and step model, at most
RETURNED_A_FRAME = 30
RETURNED_BYTES = 900  # of one, at most: its message may have four bytes a character
TAGS_A_FRAME = 512
SERVED_S = 0.1  # between two times at which a tenant's totals are told
TAG_BYTES = 48  # of one tenant's totals, at most
EVENTS_A_FRAME = 1024  # of at most 22 bytes
MOST_EVENTS = 1 << 16  # beyond this the router sees a gap and asks for a snapshot
NOTICEABLE = 0.05  # relative change of a step model's coefficient
MESSAGE_CHARS = 200
CLAIMED_BYTES = 2 << 10  # of answers to claims in one frame, but for one large piece
MOST_CLAIMED = 256


class Receipt(NamedTuple):
    """What frames told of jobs, as far as it frees anything here once the router has it."""

    upto: dict[Job, int]  # all log-probabilities before this index
    ended: list[Job]  # whose end they told

    def add(self, later: Self) -> None:
        """With what a later frame told."""
        self.upto.update(later.upto)
        self.ended.extend(later.ended)

    def forget(self, job: Job) -> None:
        """What another session goes on with."""
        self.upto.pop(job, None)
        if job in self.ended:
            self.ended.remove(job)


class Outgoing:
    """What waits for one session's writer.

    Args:
        columns: whether its router reads `next_tokens`.
    """

    def __init__(self, *, columns: bool = False) -> None:
        self._columns = columns
        self.line: dict[int, Job] = {}
        """Jobs with news, by handle, in the order in which they got it; whoever has news of one adds it."""
        self.steady: Columns | None = None
        """One new id each of jobs that are not in the line."""
        self._returned: dict[int, session_pb2.Returned] = {}  # by handle
        self._report: StepReport | None = None
        self._report_s = 0.0
        self._step_model: StepModelState | None = None
        self._served: dict[bytes, list[int]] = {}
        self._served_changed: dict[bytes, None] = {}
        self._served_due: dict[bytes, None] = {}  # of those, whose turn it is
        self._next_served_s = 0.0
        self._events: deque[tuple[bool, bytes]] = deque()  # whether it was stored, and its digest
        self._next_event = 0
        self._snapshot: deque[session_pb2.KvSnapshot] = deque()
        self._draining: session_pb2.Draining | None = None
        self._claimed: deque[session_pb2.Claimed] = deque()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say."""
        return not (
            self.line
            or self.steady
            or self._returned
            or self._report
            or self._events
            or self._snapshot
            or self._draining
            or self._claimed
            or self._served_due
        )

    @property
    def told_all(self) -> bool:
        """Whether nothing about requests is left to say."""
        return not (self.line or self.steady or self._returned)

    @property
    def returns(self) -> int:
        """Requests that were given back and are still to be told."""
        return len(self._returned)

    def drop(self, job: Job) -> None:
        """Nothing more is to be said of a job."""
        self.line.pop(job.handle, None)

    def returned(
        self, job: Job, reason: session_pb2.ReturnReason, message: str = "", retry_ms: int = 0
    ) -> None:
        """A job is given back, after all of its output that was made."""
        self._returned[job.handle] = session_pb2.Returned(
            slot=job.slot,
            attempt=job.attempt,
            reason=reason,
            next_index=job.made,
            retry_ms=retry_ms,
            message=message[:MESSAGE_CHARS],
        )

    def report(self, report: StepReport, now: float) -> None:
        """The engine's state after its last step; replaces an older one that was not sent."""
        self._report, self._report_s = report, now
        for tag, served in report.served.items():
            self._serve(tag, served)
        if now >= self._next_served_s:
            self._next_served_s = now + SERVED_S
            self._served_due.update(self._served_changed)
            self._served_changed.clear()
        self._keep(report.kv)

    def standing(self, report: StepReport, now: float) -> None:
        """The engine's state at the session's beginning, without news that are not this session's."""
        self._report, self._report_s = report, now

    def snapshot(self, pieces: Iterable[session_pb2.KvSnapshot]) -> None:
        """The whole content of the KV cache; earlier events are part of it."""
        self._snapshot = deque(pieces)
        self._events.clear()

    def claimed(self, pieces: Sequence[session_pb2.Claimed]) -> bool:
        """The answer to a claim; False when too many wait already."""
        if len(self._claimed) > MOST_CLAIMED:
            return False
        self._claimed.extend(pieces)
        return True

    def draining(self, remaining_ms: int) -> None:
        """The worker is leaving."""
        self._draining = session_pb2.Draining(remaining_ms=remaining_ms)

    def fill(self, frame: session_pb2.WorkerFrame) -> Receipt:
        """Moves as much as fits into a frame; returns what it tells of jobs."""
        if self._draining is not None:
            frame.draining.CopyFrom(self._draining)
            self._draining = None
        self._fill_state(frame)
        receipt = Receipt({}, [])
        size = STATE_BYTES + self._fill_claimed(frame)
        if self.steady is not None:
            size += _fill_columns(frame.next_tokens, self.steady)
            self.steady = None
        if self._columns and self.line and size < LARGE_BYTES:
            size += self._fill_next_tokens(frame)
        if self.line and size < LARGE_BYTES:
            size += self._fill_updates(frame, receipt)
        if self._returned and size < LARGE_BYTES:
            size += self._fill_returned(frame)
        if self._served_due and size < LARGE_BYTES:
            size += self._fill_served(frame)
        if size < LARGE_BYTES:
            self._fill_kv(frame, size)
        return receipt

    def _serve(self, tag: bytes, served: Served) -> None:
        totals = self._served.setdefault(tag, [0, 0])
        totals[0] += served.prompt_tokens
        totals[1] += served.output_tokens
        self._served_changed[tag] = None

    def _keep(self, events: KVEvents) -> None:
        if not events.digests:
            return
        if len(self._events) + len(events.digests) > MOST_EVENTS:
            self._events.clear()
        if not self._events:
            self._next_event = events.first_number
        self._events.extend(zip(events.stored.tolist(), events.digests, strict=True))

    def _fill_state(self, frame: session_pb2.WorkerFrame) -> None:
        report, self._report = self._report, None
        if report is None:
            return
        _fill_load(frame.load, report)
        _fill_progress(frame.progress, report, self._report_s)
        if self._step_model is None or _differs(self._step_model, report.step_model):
            self._step_model = report.step_model
            _fill_step_model(frame.step_model, report.step_model)

    def _fill_claimed(self, frame: session_pb2.WorkerFrame) -> int:
        """Before all else: a client waits for it. A large piece has its frame for itself."""
        size = 0
        while self._claimed and size < CLAIMED_BYTES:
            piece = self._claimed[0].ByteSize()
            if size and piece > CLAIMED_BYTES:
                break
            frame.claimed.append(self._claimed.popleft())
            size += piece
        return size

    def _fill_next_tokens(self, frame: session_pb2.WorkerFrame) -> int:
        """Those with one new id alone, at a tenth of the cost of updates. Returns how many bytes that is at
        most; so do those that follow."""
        told = [
            job
            for job in islice(self.line.values(), NEXT_A_FRAME)
            if job.made - job.sent == 1 and job.end is None and not job.described
        ]
        if not told:
            return 0
        columns = Columns(
            [job.slot for job in told],
            [job.attempt for job in told],
            [job.sent for job in told],
            [job.ids[-1] for job in told],
        )
        for job in told:
            job.sent = job.made
        self._leave_line(told)
        return _fill_columns(frame.next_tokens, columns)

    def _fill_updates(self, frame: session_pb2.WorkerFrame, receipt: Receipt) -> int:
        """In the order in which they got news."""
        size, updates = 0, frame.updates
        told, more = [], []
        for job in self.line.values():
            if size >= LARGE_BYTES:
                break
            size += job.tell(updates)
            told.append(job)
            if job.described:
                receipt.upto[job] = job.sent
            if job.sent < job.made:  # it was too much for one message: the rest comes after the others
                more.append(job)
            elif job.end_sent:
                receipt.ended.append(job)
        self._leave_line(told)
        self.line.update((job.handle, job) for job in more)
        return size

    def _leave_line(self, told: Collection[Job]) -> None:
        if len(told) == len(self.line):
            self.line.clear()
            return
        for job in told:
            del self.line[job.handle]

    def _fill_returned(self, frame: session_pb2.WorkerFrame) -> int:
        """Only of jobs whose output has been told: it goes on elsewhere after that."""
        ready = [handle for handle in self._returned if handle not in self.line][:RETURNED_A_FRAME]
        for handle in ready:
            frame.returned.append(self._returned.pop(handle))
        return RETURNED_BYTES * len(ready)

    def _fill_served(self, frame: session_pb2.WorkerFrame) -> int:
        tags = list(self._served_due)[:TAGS_A_FRAME]
        for tag in tags:
            prompt_tokens, output_tokens = self._served[tag]
            del self._served_due[tag]
            frame.tenant_service.add(tenant_tag=tag, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        return TAG_BYTES * len(tags)

    def _fill_kv(self, frame: session_pb2.WorkerFrame, size: int) -> None:
        """Events wait until a snapshot is complete."""
        if self._snapshot:
            if size < SMALL_BYTES:
                frame.kv_snapshot.CopyFrom(self._snapshot.popleft())
            return
        count = min(EVENTS_A_FRAME, len(self._events))
        if count:
            frame.kv_events.first_number = self._next_event
            self._next_event += count
        for _ in range(count):
            stored, digest = self._events.popleft()
            name = digest[:NAME_BYTES]
            frame.kv_events.events.add(**({"stored": name} if stored else {"removed": name}))


def _fill_columns(told: session_pb2.NextTokens, columns: Columns) -> int:
    """Returns how many bytes that is at most."""
    told.slots.extend(columns.slots)
    told.attempts.extend(columns.attempts)
    told.indices.extend(columns.indices)
    told.token_ids.extend(columns.token_ids)
    columns.told = True
    return NEXT_BYTES * len(columns.slots)


def _fill_load(told: session_pb2.Load, report: StepReport) -> None:
    load, progress = report.load, report.progress
    told.running = load.running
    told.waiting = load.waiting
    told.waiting_tokens = load.waiting_uncached_tokens
    told.kv_blocks_free = load.blocks_free
    told.kv_blocks_cached = load.blocks_cached
    told.kv_blocks_held = load.blocks_held
    told.batch_size = progress.batch_size
    told.step_tokens = progress.step_tokens
    told.step_us = int(progress.step_s * 1e6)
    told.batch_sequences = load.batch_requests
    told.batch_waiting_tokens = load.batch_uncached_tokens


def _fill_progress(told: session_pb2.Progress, report: StepReport, now: float) -> None:
    """`now` is when the report came."""
    progress = report.progress
    told.steps, told.has_work = progress.finished_steps, progress.has_work
    if progress.has_work:
        told.since_last_step_us = int(max(0.0, now - progress.last_finished_s) * 1e6)


def _fill_step_model(told: session_pb2.StepModel, state: StepModelState) -> None:
    told.a, told.b, told.c, told.d, told.e = state.coefficients
    told.upper_quantile = state.quantile


def _differs(old: StepModelState, new: StepModelState) -> bool:
    for before, after in zip(old.coefficients, new.coefficients, strict=True):
        if abs(after - before) > NOTICEABLE * abs(before) + 1e-14:
            return True
    return abs(new.quantile - old.quantile) > NOTICEABLE * old.quantile
