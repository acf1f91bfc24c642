"""One open session: what its router sent, and what it must be told. No I/O: the link reads and writes.

Frames, their numbers and the credit in them are looked at here; what a router's commands do, in `commands`.
"""

from __future__ import annotations

import asyncio

from headrace.v1 import session_pb2

from services.worker.engine.report import StepReport
from services.worker.session.columns import Columns
from services.worker.session.commands import Commands
from services.worker.session.credits import Room
from services.worker.session.desk import Desk
from services.worker.session.faults import Faults, Misbehaved
from services.worker.session.job import Job
from services.worker.session.outgoing import Outgoing
from services.worker.session.receipts import Handled, Receipt, Receipts
from services.worker.session.seats import Seats

NO_CREDIT_RETRY_MS = 50
HANDSHAKE_FRAMES = 2


class Session:
    """From Welcome to the end. All methods are synchronous; `news` wakes the writer."""

    def __init__(self, desk: Desk, welcome: session_pb2.Welcome, now: float) -> None:
        self.number = desk.new_session()
        self.router_id = welcome.router_id
        self.news = asyncio.Event()
        self.leaving = False
        self._desk = desk
        self._sent = self._received = HANDSHAKE_FRAMES
        self._handled = Handled(HANDSHAKE_FRAMES)
        self._seats = Seats()
        self._receipts = Receipts()
        self.columns = welcome.next_tokens
        self.counts = welcome.token_counts
        self._outgoing = Outgoing(columns=self.columns, counts=self.counts, answer=desk.claimed)
        self.line = self._outgoing.line
        self._booked = 0  # the last router frame that takes credit, by that router's own account
        self._acknowledged = 0  # the last router frame that was said to be part of a report
        self._granted = (0, 0)  # the `_grants` of the last credit told
        self._faults = Faults(self.router_id, desk.metrics, now)
        self._commands = Commands(self, desk, self._seats, self._outgoing, self._faults)

    def begin(self, welcome: session_pb2.Welcome, held: dict[int, Job], now: float) -> None:
        """Opens: takes over the held jobs that go on, ends the others, tells the engine's state."""
        self._desk.open(self)
        if welcome.orphan_hold_ms:
            self._desk.records.hold_s = welcome.orphan_hold_ms / 1000
        try:
            for request in welcome.resume:
                self._commands.resume(request, held.pop(request.handle, None), now)
        finally:
            for job in held.values():
                self._desk.abandon(job)
        if self._desk.last_report is not None:
            self._outgoing.standing(*self._desk.last_report)
        if self._desk.draining_ms is not None:
            self._outgoing.draining(self._desk.draining_ms)
        self.news.set()

    def end(self) -> dict[int, Job]:
        """Closes; returns the jobs that another session may resume, by handle."""
        self._desk.close(self)
        held = {job.handle: job for job in self._seats.jobs.values() if not job.returned}
        for job in self._commands.unfinished:
            held.pop(job.handle, None)
        for job in held.values():
            job.holder = held
        return held

    @property
    def settled(self) -> bool:
        """Whether the router knows the end of everything that it submitted."""
        return self._seats.empty and self._outgoing.told_all

    def handle(self, frame: session_pb2.RouterFrame, now: float) -> None:
        """Takes one frame of the router. Raises Misbehaved."""
        if frame.number != self._received + 1:
            self._faults.add("frame_gap" if frame.number > self._received else "duplicate_frame", now)
            raise Misbehaved("commands are missing: only another session can put that right")
        self._received = frame.number
        if frame.submits or frame.prompt_pieces or frame.adoptions:
            self._booked = frame.number
        self._commands.obey(frame, now)
        self._handled.add(frame.number, self._desk.last_command)
        self._acknowledge(frame.acknowledged_frame, now)  # after the submits, which used earlier grants
        if not self._outgoing.empty:
            self.news.set()

    def take(self) -> session_pb2.WorkerFrame | None:
        """The next frame to write; None when there is nothing to say. Raises Misbehaved.

        `news` is set afterwards if something is left to say.
        """
        self._faults.check()
        if self._outgoing.empty:
            self.news.clear()
            return None
        self._sent += 1
        self._acknowledged = self._reported()
        frame = session_pb2.WorkerFrame(number=self._sent, acknowledged_command=self._acknowledged)
        receipt = self._outgoing.fill(frame)
        if frame.HasField("load"):
            self._grant(frame)
        self._written(receipt)
        if self._outgoing.empty:
            self.news.clear()
        return frame

    def tell(self, columns: Columns) -> None:
        """A step of a steady batch, with the next frame."""
        self._outgoing.steady = columns
        self.news.set()

    def take_back(self) -> None:
        """Its jobs are in the line instead."""
        self._outgoing.steady = None

    def heard(self, report: StepReport, now: float) -> None:
        """The engine's state after its last step."""
        acknowledges = self._reported() > self._acknowledged
        self._outgoing.report(report, now, presses=acknowledges or self._grants != self._granted)
        self._commands.drop_overdue(now)
        if not self._outgoing.empty:
            self.news.set()

    def give_back(self, job: Job, reason: session_pb2.ReturnReason, message: str = "") -> None:
        """The job may run elsewhere; its slot is free."""
        job.returned = True
        self._seats.free(job)
        self._seats.forget(job)
        retry_ms = NO_CREDIT_RETRY_MS if reason == session_pb2.RETURN_REASON_NO_CREDIT else 0
        self._outgoing.returned(job, reason, message, retry_ms)
        self._desk.metrics.returned.labels(session_pb2.ReturnReason.Name(reason)).inc()
        self.news.set()

    def lose(self, job: Job, slot: int, attempt: int) -> None:
        """Another session has taken over what was in this slot; here it is over."""
        self._outgoing.drop(job)
        self._seats.forget(job)
        self._receipts.forget(job)
        if self._seats.slots.get(slot) is job:
            stub = session_pb2.Submit(slot=slot, request_id=job.request_id, attempt=attempt)
            rest = Job(self._desk.new_handle(), stub)
            rest.end = session_pb2.SequenceEnd(reason=session_pb2.END_REASON_CLAIMED)
            self._seats.seat(rest)
            self.line[rest.handle] = rest
            self.news.set()

    def drain(self, remaining_ms: int) -> None:
        """Says that the worker is leaving; gives back what has not begun."""
        self._outgoing.draining(remaining_ms)
        self._commands.give_back_unfinished()
        self.news.set()

    def _grant(self, frame: session_pb2.WorkerFrame) -> None:
        """Tells the credit when it has changed, or what it counts from."""
        grants = self._grants
        if grants == self._granted:
            return
        self._granted = grants
        grant = self._desk.books.grant(self.number, self._sent)
        _fill(frame.credit, grant.all)
        if grant.foreground != grant.all:
            _fill(frame.foreground_credit, grant.foreground)

    @property
    def _grants(self) -> tuple[int, int]:
        """What credit that is told now follows from: changes of the books, and the command it counts from."""
        return self._desk.books.changes, min(self._reported(), self._booked)

    def _written(self, receipt: Receipt) -> None:
        for job in receipt.ended:
            self._seats.free(job)
        self._receipts.add(self._sent, receipt)

    def _acknowledge(self, number: int, now: float) -> None:
        if number > self._sent:
            self._faults.add("acknowledged_frame", now)
            return
        self._desk.books.acknowledged(self.number, number)
        self._settle(self._receipts.take(number))
        if self.leaving and self.settled:
            self.news.set()

    def _settle(self, told: Receipt) -> None:
        for job, upto in told.upto.items():
            job.acknowledged(upto)
        for job in told.ended:
            self._seats.forget(job)

    def _reported(self) -> int:
        """The last router frame whose commands are part of the last report."""
        report = self._desk.last_report
        return self._handled.upto(report[0].last_command if report else 0)


def _fill(credit: session_pb2.Credit, room: Room) -> None:
    credit.prefill_tokens, credit.sequences, credit.kv_blocks = room
