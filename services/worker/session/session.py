"""One open session: what its router sent, and what it must be told. No I/O: the link reads and writes.

Whatever a router sends is contained here: wrong slots, attempts, pieces and numbers are counted and answered
or ignored, and a router that goes on with it is left. Nothing of it reaches the engine.
"""

from __future__ import annotations

import asyncio

from headrace.v1 import session_pb2

from services.common import logs
from services.common.conduct import Conduct
from services.worker.engine.report import StepReport
from services.worker.session.credits import Demand, Room
from services.worker.session.desk import Desk
from services.worker.session.gone import Gone
from services.worker.session.home import Columns
from services.worker.session.intake import refusal
from services.worker.session.job import Job
from services.worker.session.outgoing import Outgoing
from services.worker.session.prompts import Arrival, Assembly, is_complete
from services.worker.session.receipts import Handled, Receipt, Receipts

NO_CREDIT_RETRY_MS = 50
MOST_RETURNS = 4096  # that a router has not read
HANDSHAKE_FRAMES = 2
log = logs.get(__name__)


class Misbehaved(Exception):
    """The router goes on sending what makes no sense."""


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
        self._slots: dict[int, Job] = {}  # by slot, until the terminal event is written
        self._jobs: dict[int, Job] = {}  # by handle, until the terminal event is acknowledged
        self._gone = Gone()
        self._assemblies: dict[int, Assembly] = {}  # by handle
        self._receipts = Receipts()
        self.columns = welcome.next_tokens
        self._outgoing = Outgoing(columns=self.columns)
        self.line = self._outgoing.line
        self._booked = 0  # the last router frame that takes credit, by that router's own account
        self._granted = (0, 0)  # changes of the books, and the command, that the last credit told counts from
        self._conduct = Conduct(now)
        self._faults: set[str] = set()  # that were logged
        self._given_up: Misbehaved | None = None  # raised where the writer takes its next frame

    def begin(self, welcome: session_pb2.Welcome, held: dict[int, Job], now: float) -> None:
        """Opens: takes over the held jobs that go on, ends the others, tells the engine's state."""
        self._desk.open(self)
        if welcome.orphan_hold_ms:
            self._desk.records.hold_s = welcome.orphan_hold_ms / 1000
        try:
            for request in welcome.resume:
                self._resume(request, held.pop(request.handle, None), now)
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
        held = {job.handle: job for job in self._jobs.values() if not job.returned}
        for assembly in self._assemblies.values():
            held.pop(assembly.arrival.job.handle, None)
        for job in held.values():
            job.holder = held
        return held

    @property
    def settled(self) -> bool:
        """Whether the router knows the end of everything that it submitted."""
        return not self._slots and self._outgoing.told_all and not self._jobs

    def handle(self, frame: session_pb2.RouterFrame, now: float) -> None:
        """Takes one frame of the router. Raises Misbehaved."""
        if frame.number != self._received + 1:
            self._fault("frame_gap" if frame.number > self._received else "duplicate_frame", now)
            raise Misbehaved("commands are missing: only another session can put that right")
        self._received = frame.number
        if frame.submits or frame.prompt_pieces or frame.adoptions:
            self._booked = frame.number
        self._commands(frame, now)
        self._handled.add(frame.number, self._desk.last_command)
        self._acknowledge(frame.acknowledged_frame, now)  # after the submits, which used earlier grants
        if not self._outgoing.empty:
            self.news.set()

    def take(self) -> session_pb2.WorkerFrame | None:
        """The next frame to write; None when there is nothing to say. Raises Misbehaved."""
        if self._given_up is not None:
            raise self._given_up
        if self._outgoing.empty:
            self.news.clear()
            return None
        self._sent += 1
        frame = session_pb2.WorkerFrame(number=self._sent, acknowledged_command=self._reported())
        receipt = self._outgoing.fill(frame)
        if frame.HasField("load"):
            self._grant(frame)
        self._written(receipt)
        return frame

    def _has_news(self, job: Job) -> None:
        """The job has output or an end to send."""
        self.line[job.handle] = job
        self.news.set()

    def tell(self, columns: Columns) -> None:
        """A step of a steady batch, with the next frame."""
        self._outgoing.steady = columns
        self.news.set()

    def take_back(self) -> None:
        """Its jobs are in the line instead."""
        self._outgoing.steady = None

    def heard(self, report: StepReport, now: float) -> None:
        """The engine's state after its last step."""
        self._outgoing.report(report, now)
        if self._assemblies:
            self._drop_overdue(now)
        self.news.set()

    def give_back(self, job: Job, reason: session_pb2.ReturnReason, message: str = "") -> None:
        """The job may run elsewhere; its slot is free."""
        job.returned = True
        self._free_slot(job)
        self._jobs.pop(job.handle, None)
        retry_ms = NO_CREDIT_RETRY_MS if reason == session_pb2.RETURN_REASON_NO_CREDIT else 0
        self._outgoing.returned(job, reason, message, retry_ms)
        self._desk.metrics.returned.labels(session_pb2.ReturnReason.Name(reason)).inc()
        self.news.set()

    def lose(self, job: Job, slot: int, attempt: int) -> None:
        """Another session has taken over what was in this slot; here it is over."""
        self._outgoing.drop(job)
        self._jobs.pop(job.handle, None)
        self._receipts.forget(job)
        if self._slots.get(slot) is job:
            stub = session_pb2.Submit(slot=slot, request_id=job.request_id, attempt=attempt)
            rest = Job(self._desk.new_handle(), stub)
            rest.end = session_pb2.SequenceEnd(reason=session_pb2.END_REASON_CLAIMED)
            self._seat(rest)
            self._has_news(rest)

    def drain(self, remaining_ms: int) -> None:
        """Says that the worker is leaving; gives back what has not begun."""
        self._outgoing.draining(remaining_ms)
        for assembly in list(self._assemblies.values()):
            self._drop(assembly)
            self.give_back(assembly.arrival.job, session_pb2.RETURN_REASON_DRAINING)
        self.news.set()

    def _commands(self, frame: session_pb2.RouterFrame, now: float) -> None:
        for submit in frame.submits:
            self._submit(submit, now)
        for piece in frame.prompt_pieces:
            self._piece(piece, now)
        for cancel in frame.cancels:
            self._cancel(cancel, now)
        for claim in frame.claims:
            self._claim(claim, now)
        for adopt in frame.adoptions:
            self._adopt(adopt, now)
        if frame.HasField("demand"):
            demand = frame.demand
            foreground = Demand(demand.foreground_prefill_tokens, demand.foreground_requests)
            self._desk.books.demand(self.number, Demand(demand.prefill_tokens, demand.requests), foreground)
        if frame.kv_snapshot_wanted:
            self._outgoing.snapshot(self._desk.prefixes.snapshot())
        if frame.HasField("drain"):
            log.info("asked_to_leave", router=self.router_id, grace_ms=frame.drain.grace_ms)
            self._desk.leave(frame.drain.grace_ms / 1000 or None)

    def _submit(self, submit: session_pb2.Submit, now: float) -> None:
        if submit.slot in self._slots:
            self._fault("duplicate_slot", now)
            return
        job = Job(self._desk.new_handle(), submit)
        if self._desk.draining_ms is not None:
            self._refuse(job, session_pb2.RETURN_REASON_DRAINING)
            return
        refused = refusal(submit, self._desk.engine.description)
        if refused is not None and not refused.malformed:
            self._refuse(job, session_pb2.RETURN_REASON_UNSUPPORTED, refused.message)
        elif refused is not None:
            self._seat(job)
            self._fail(job, refused.message)
            self._fault("malformed_submit", now)
        elif not self._desk.admit(self, job, submit):
            self._refuse(job, session_pb2.RETURN_REASON_NO_CREDIT)
        else:
            self._begin(Arrival(job, submit, now))

    def _begin(self, arrival: Arrival) -> None:
        self._seat(arrival.job)
        if is_complete(arrival.submit):
            self._desk.submit(self, arrival)
        else:
            self._assemblies[arrival.job.handle] = Assembly(arrival)

    def _piece(self, piece: session_pb2.PromptPiece, now: float) -> None:
        job = self._find(piece.slot, piece.attempt, now)
        assembly = self._assemblies.get(job.handle) if job is not None else None
        if job is None or assembly is None:
            self._fault("stray_piece", now)
        elif not assembly.add(piece, now):
            self._drop(assembly)
            self._fail(job, "the pieces of the prompt do not fit together")
            self._fault("malformed_piece", now)
        elif assembly.complete:
            del self._assemblies[job.handle]
            self._desk.submit(self, assembly.arrival)

    def _drop_overdue(self, now: float) -> None:
        """Gives back what waits for the rest of its prompt; a router that goes on with that is left."""
        for assembly in [each for each in self._assemblies.values() if each.overdue(now)]:
            self._drop(assembly)
            self.give_back(assembly.arrival.job, session_pb2.RETURN_REASON_INCOMPLETE)
            try:
                self._fault("incomplete_prompt", now)
            except Misbehaved as error:
                self._given_up = error

    def _cancel(self, cancel: session_pb2.Cancel, now: float) -> None:
        if self._gone.take(cancel.slot, cancel.attempt):
            return
        job = self._find(cancel.slot, cancel.attempt, now)
        if job is None or job.end is not None:
            return
        assembly = self._assemblies.get(job.handle)
        if assembly is None:
            self._desk.abort(job)
            return
        self._drop(assembly)
        job.end = session_pb2.SequenceEnd(reason=session_pb2.END_REASON_CANCELLED)
        self._has_news(job)

    def _claim(self, claim: session_pb2.Claim, now: float) -> None:
        if not self._outgoing.claimed(self._desk.claimed(claim, now)):
            self._fault("claims", now)

    def _adopt(self, adopt: session_pb2.Adopt, now: float) -> None:
        """Goes on with a claimed job, or says that it cannot, so that it goes on elsewhere."""
        if adopt.slot in self._slots:
            self._fault("duplicate_slot", now)
            return
        job = self._desk.hand_over(self, adopt)
        if job is None:
            self._give_back_unknown(adopt.slot, "", adopt.attempt, adopt.next_index)
            return
        self._seat(job)
        if job.has_news:
            self.line[job.handle] = job

    def _resume(self, request: session_pb2.ResumeRequest, job: Job | None, now: float) -> None:
        """Goes on with a job, or says that it cannot, so that it goes on elsewhere."""
        taken = request.slot in self._slots
        same = job is not None and not taken and job.attempt == request.attempt
        if job is not None and same and job.resume(request.slot, request.next_index):
            self._seat(job)
            self._desk.adopt(self, job)
            if job.has_news:
                self.line[job.handle] = job
            return
        if job is not None:
            self._desk.abandon(job)
            self._fault("bad_resume", now)
        if not taken:
            self._give_back_unknown(request.slot, request.request_id, request.attempt, request.next_index)

    def _give_back_unknown(self, slot: int, request_id: str, attempt: int, next_index: int) -> None:
        stub = session_pb2.Submit(slot=slot, request_id=request_id, attempt=attempt, next_index=next_index)
        job = Job(self._desk.new_handle(), stub)
        self._refuse(job, session_pb2.RETURN_REASON_NO_CREDIT, "not held any more")

    def _refuse(self, job: Job, reason: session_pb2.ReturnReason, message: str = "") -> None:
        """Gives back what just came; a router that does not read that may not send for ever."""
        if self._outgoing.returns >= MOST_RETURNS:
            raise Misbehaved("it does not hear what is given back")
        self.give_back(job, reason, message)

    def _seat(self, job: Job) -> None:
        self._gone.take(job.slot, job.attempt)
        self._slots[job.slot] = job
        self._jobs[job.handle] = job

    def _free_slot(self, job: Job) -> None:
        if self._slots.get(job.slot) is job:
            del self._slots[job.slot]
        self._gone.add(job)

    def _grant(self, frame: session_pb2.WorkerFrame) -> None:
        """Tells the credit when it has changed, or what it counts from."""
        books = self._desk.books
        state = (books.changes, min(frame.acknowledged_command, self._booked))
        if state == self._granted:
            return
        self._granted = state
        grant = books.grant(self.number, self._sent)
        _fill(frame.credit, grant.all)
        if grant.foreground != grant.all:
            _fill(frame.foreground_credit, grant.foreground)

    def _find(self, slot: int, attempt: int, now: float) -> Job | None:
        job = self._slots.get(slot)
        if job is None or job.attempt != attempt:
            self._fault("unknown_slot", now)
            return None
        return job

    def _fail(self, job: Job, message: str) -> None:
        job.end = session_pb2.SequenceEnd(reason=session_pb2.END_REASON_ERROR, message=message)
        self._has_news(job)

    def _drop(self, assembly: Assembly) -> None:
        handle = assembly.arrival.job.handle
        del self._assemblies[handle]
        self._desk.books.released(handle)

    def _written(self, receipt: Receipt) -> None:
        for job in receipt.ended:
            self._free_slot(job)
        self._receipts.add(self._sent, receipt)

    def _acknowledge(self, number: int, now: float) -> None:
        if number > self._sent:
            self._fault("acknowledged_frame", now)
            return
        self._desk.books.acknowledged(self.number, number)
        self._settle(self._receipts.take(number))
        if self.leaving and self.settled:
            self.news.set()

    def _settle(self, told: Receipt) -> None:
        for job, upto in told.upto.items():
            job.acknowledged(upto)
        for job in told.ended:
            self._jobs.pop(job.handle, None)

    def _reported(self) -> int:
        """The last router frame whose commands are part of the last report."""
        report = self._desk.last_report
        return self._handled.upto(report[0].last_command if report else 0)

    def _fault(self, kind: str, now: float) -> None:
        self._desk.metrics.bad_frames.labels(kind).inc()
        if kind not in self._faults:
            self._faults.add(kind)
            log.warning("bad_frame", router=self.router_id, kind=kind)
        if self._conduct.fault(now):
            raise Misbehaved(kind)


def _fill(credit: session_pb2.Credit, room: Room) -> None:
    credit.prefill_tokens, credit.sequences, credit.kv_blocks = room
