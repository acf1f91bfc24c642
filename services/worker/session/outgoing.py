"""Everything that one router is still to be told, merged until it can be written, then cut into frames.

While a write is under way later steps only mark what has news: the output itself stays in its job, so memory
is bounded by tokens, not by frames.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain

from headrace.v1 import session_pb2

from services.worker.engine.report import StepReport
from services.worker.session.answers import Answer, Answers, nothing_known
from services.worker.session.columns import MOST_BYTES, Columns, columns_bytes
from services.worker.session.job import Job
from services.worker.session.kv_news import KvNews
from services.worker.session.receipts import Receipt
from services.worker.session.state_news import STATE_BYTES, ServedNews, StateNews

LARGE_BYTES = 28 << 10  # a frame beyond this takes no further part; each has at most 30 KiB: 64 KiB in all
MOST_AT_ONCE = 64  # ids of one job in columns
RETURNED_A_FRAME = 30
RETURNED_BYTES = 900  # of one, at most: its message may have four bytes a character
MESSAGE_CHARS = 200


class Outgoing:
    """What waits for one session's writer.

    Args:
        columns: whether its router reads `next_tokens`.
        counts: and with several ids of a request in them.
        answer: what is said to its claims; it may add to the line.
    """

    def __init__(
        self, *, columns: bool = False, counts: bool = False, answer: Answer = nothing_known
    ) -> None:
        self._columns = columns
        self._most = MOST_AT_ONCE if counts else 1  # ids of a job in columns
        self.line: dict[int, Job] = {}
        """Jobs with news, by handle, in the order in which they got it; whoever has news of one adds it."""
        self.steady: Columns | None = None
        """New ids of jobs that are not in the line."""
        self._returned: dict[int, session_pb2.Returned] = {}  # by handle
        self._state = StateNews()
        self._served = ServedNews()
        self._kv = KvNews()
        self._draining: session_pb2.Draining | None = None
        self._answers = Answers(answer)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say."""
        news = self.line or self.steady or self._returned or self._draining
        said = self._answers.empty and self._state.empty and self._served.empty and self._kv.empty
        return said and not news

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

    def report(self, report: StepReport, now: float, *, presses: bool = True) -> None:
        """The engine's state after its last step; replaces an older one that was not sent.

        With `presses` the session has to say something with it.
        """
        self._state.put(report, now, presses=presses)
        self._served.put(report.served, now)
        self._kv.put(report.kv)

    def standing(self, report: StepReport, now: float) -> None:
        """The engine's state at the session's beginning, without news that are not this session's."""
        self._state.put(report, now)

    def snapshot(self, pieces: Iterable[session_pb2.KvSnapshot]) -> None:
        """The whole content of the KV cache; earlier events are part of it."""
        self._kv.snapshot(pieces)

    def claimed(self, claim: session_pb2.Claim, now: float) -> bool:
        """Its router looks for a request; False when no router would ask that."""
        return self._answers.add(claim, now)

    def draining(self, remaining_ms: int) -> None:
        """The worker is leaving."""
        self._draining = session_pb2.Draining(remaining_ms=remaining_ms)

    def fill(self, frame: session_pb2.WorkerFrame) -> Receipt:
        """Moves as much as fits into a frame; returns what it tells of jobs."""
        if self._draining is not None:
            frame.draining.CopyFrom(self._draining)
            self._draining = None
        self._state.fill(frame)
        receipt = Receipt({}, [])
        size = STATE_BYTES + self._answers.fill(frame)  # first: clients wait for it, and the line may grow
        if self.steady is not None:
            size += _fill_columns(frame.next_tokens, self.steady)
            self.steady = None
        if self._columns and self.line and size < LARGE_BYTES:
            size += self._fill_next_tokens(frame)
        if self.line and size < LARGE_BYTES:
            size += self._fill_updates(frame, receipt)
        if self._returned and size < LARGE_BYTES:
            size += self._fill_returned(frame)
        if size < LARGE_BYTES:
            size += self._served.fill(frame)
        self._served.missed()
        if size < LARGE_BYTES:
            self._kv.fill(frame, size)
        return receipt

    def _fill_next_tokens(self, frame: session_pb2.WorkerFrame) -> int:
        """Those with a few new ids alone. Returns how many bytes that is at most; so do those that follow."""
        size, told = 0, []
        for job in self.line.values():
            new = job.made - job.sent
            if not 0 < new <= self._most or job.end is not None or job.described:
                continue
            size += columns_bytes(1, new)
            if size > MOST_BYTES:
                break
            told.append(job)
        if not told:
            return 0
        counts = [job.made - job.sent for job in told]
        columns = Columns(
            [job.slot for job in told],
            [job.attempt for job in told],
            [job.sent for job in told],
            list(chain.from_iterable(job.ids[-new:] for job, new in zip(told, counts, strict=True))),
            counts if max(counts) > 1 else [],
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


def _fill_columns(told: session_pb2.NextTokens, columns: Columns) -> int:
    """Adds them to what is told: counts are of all or of none. Returns how many bytes that is at most."""
    if columns.counts or told.counts:
        told.counts.extend([1] * (len(told.slots) - len(told.counts)))
        told.counts.extend(columns.counts or [1] * len(columns.slots))
    told.slots.extend(columns.slots)
    told.attempts.extend(columns.attempts)
    told.indices.extend(columns.indices)
    told.token_ids.extend(columns.token_ids)
    columns.told = True
    return columns_bytes(len(columns.slots), len(columns.token_ids))
