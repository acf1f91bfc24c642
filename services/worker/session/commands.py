"""What a router's commands do to its requests.

Whatever it sends is contained here: wrong slots, attempts and pieces are counted and answered or ignored.
Nothing of it reaches the engine.
"""

from __future__ import annotations

from headrace.v1 import session_pb2

from services.common import logs
from services.worker.session.credits import Demand
from services.worker.session.desk import Desk
from services.worker.session.faults import Faults, Misbehaved
from services.worker.session.home import Home
from services.worker.session.intake import refusal
from services.worker.session.job import Job
from services.worker.session.outgoing import Outgoing
from services.worker.session.prompts import Arrival, Assembly, is_complete
from services.worker.session.seats import Seats

MOST_RETURNS = 4096  # that a router has not read
log = logs.get(__name__)


class Commands:
    """Of one session, in order."""

    def __init__(self, session: Home, desk: Desk, seats: Seats, outgoing: Outgoing, faults: Faults) -> None:
        self._session = session
        self._desk = desk
        self._seats = seats
        self._outgoing = outgoing
        self._faults = faults
        self._assemblies: dict[int, Assembly] = {}  # by handle

    @property
    def unfinished(self) -> list[Job]:
        """Whose prompts are not complete: they have not begun."""
        return [assembly.arrival.job for assembly in self._assemblies.values()]

    def give_back_unfinished(self) -> None:
        """For the worker is leaving."""
        for assembly in list(self._assemblies.values()):
            self._drop(assembly)
            self._session.give_back(assembly.arrival.job, session_pb2.RETURN_REASON_DRAINING)

    def obey(self, frame: session_pb2.RouterFrame, now: float) -> None:
        """Does what a frame asks for. Raises Misbehaved."""
        for submit in frame.submits:
            self._submit(submit, now)
        for piece in frame.prompt_pieces:
            self._piece(piece, now)
        for adopt in frame.adoptions:
            self._adopt(adopt, now)
        for cancel in frame.cancels:  # after all that the frame may have begun
            self._cancel(cancel, now)
        for claim in frame.claims:
            self._claim(claim, now)
        if frame.HasField("demand"):
            self._demand(frame.demand)
        if frame.kv_snapshot_wanted:
            self._outgoing.snapshot(self._desk.prefixes.snapshot())
        if frame.HasField("drain"):
            log.info("asked_to_leave", router=self._session.router_id, grace_ms=frame.drain.grace_ms)
            self._desk.leave(frame.drain.grace_ms / 1000 or None)

    def _demand(self, demand: session_pb2.Demand) -> None:
        foreground = Demand(demand.foreground_prefill_tokens, demand.foreground_requests)
        everything = Demand(demand.prefill_tokens, demand.requests)
        self._desk.books.demand(self._session.number, everything, foreground)

    def _submit(self, submit: session_pb2.Submit, now: float) -> None:
        if submit.slot in self._seats.slots:
            self._faults.add("duplicate_slot", now)
            return
        job = Job(self._desk.new_handle(), submit)
        if self._desk.draining_ms is not None:
            self._refuse(job, session_pb2.RETURN_REASON_DRAINING)
            return
        refused = refusal(submit, self._desk.engine.description)
        if refused is not None and not refused.malformed:
            self._refuse(job, session_pb2.RETURN_REASON_UNSUPPORTED, refused.message)
        elif refused is not None:
            self._seats.seat(job)
            self._fail(job, refused.message)
            self._faults.add("malformed_submit", now)
        elif not self._desk.admit(self._session, job, submit):
            self._refuse(job, session_pb2.RETURN_REASON_NO_CREDIT)
        else:
            self._begin(Arrival(job, submit, now))

    def _begin(self, arrival: Arrival) -> None:
        self._seats.seat(arrival.job)
        if is_complete(arrival.submit):
            self._desk.submit(self._session, arrival)
        else:
            self._assemblies[arrival.job.handle] = Assembly(arrival)

    def _piece(self, piece: session_pb2.PromptPiece, now: float) -> None:
        job = self._find(piece.slot, piece.attempt, now)
        assembly = self._assemblies.get(job.handle) if job is not None else None
        if job is None or assembly is None:
            self._faults.add("stray_piece", now)
        elif not assembly.add(piece, now):
            self._drop(assembly)
            self._fail(job, "the pieces of the prompt do not fit together")
            self._faults.add("malformed_piece", now)
        elif assembly.complete:
            del self._assemblies[job.handle]
            self._desk.submit(self._session, assembly.arrival)

    def drop_overdue(self, now: float) -> None:
        """Gives back what waits for the rest of its prompt; a router that goes on with that is left."""
        for assembly in [each for each in self._assemblies.values() if each.overdue(now)]:
            self._drop(assembly)
            self._session.give_back(assembly.arrival.job, session_pb2.RETURN_REASON_INCOMPLETE)
            self._faults.note("incomplete_prompt", now)

    def _cancel(self, cancel: session_pb2.Cancel, now: float) -> None:
        if self._seats.gone.take(cancel.slot, cancel.attempt):
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
        self._tell(job)

    def _claim(self, claim: session_pb2.Claim, now: float) -> None:
        if not self._outgoing.claimed(claim, now):
            self._faults.add("claims", now)

    def _adopt(self, adopt: session_pb2.Adopt, now: float) -> None:
        """Goes on with a claimed job, or says that it cannot, so that it goes on elsewhere."""
        if adopt.slot in self._seats.slots:
            self._faults.add("duplicate_slot", now)
            return
        job = self._desk.hand_over(self._session, adopt)
        if job is None:
            self._give_back_unknown(adopt.slot, "", adopt.attempt, adopt.next_index)
            return
        self._seats.seat(job)
        if job.has_news:
            self._outgoing.line[job.handle] = job

    def resume(self, request: session_pb2.ResumeRequest, job: Job | None, now: float) -> None:
        """Goes on with a job, or says that it cannot, so that it goes on elsewhere."""
        taken = request.slot in self._seats.slots
        same = job is not None and not taken and job.attempt == request.attempt
        if job is not None and same and job.resume(request.slot, request.next_index):
            self._seats.seat(job)
            self._desk.adopt(self._session, job)
            if job.has_news:
                self._outgoing.line[job.handle] = job
            return
        if job is not None:
            self._desk.abandon(job)
            self._faults.add("bad_resume", now)
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
        self._session.give_back(job, reason, message)

    def _find(self, slot: int, attempt: int, now: float) -> Job | None:
        job = self._seats.find(slot, attempt)
        if job is None:
            self._faults.add("unknown_slot", now)
        return job

    def _tell(self, job: Job) -> None:
        """Its end is to be sent."""
        self._outgoing.line[job.handle] = job
        self._session.news.set()

    def _fail(self, job: Job, message: str) -> None:
        job.end = session_pb2.SequenceEnd(reason=session_pb2.END_REASON_ERROR, message=message)
        self._tell(job)

    def _drop(self, assembly: Assembly) -> None:
        handle = assembly.arrival.job.handle
        del self._assemblies[handle]
        self._desk.books.released(handle)
