"""One worker as this router holds it: its seats and its frames.

Whatever a worker sends is contained here: unknown slots, other attempts, wrong indices and absurd numbers are
counted and dropped, and a worker that goes on with it is closed.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf

from headrace.v1 import admin_pb2, session_pb2

from services.common import errors, logs
from services.common.conduct import Conduct
from services.router.chains import ChainKind
from services.router.metrics import RouterMetrics
from services.router.policy import Cost, LatencyClass, Waiting, WorkerView
from services.router.policy.kv_feed import KvFeed
from services.router.policy.speed import StepModel
from services.router.policy.worker import BLOCK_TOKENS
from services.router.relay.flight import Flight, Progress, Seat, numerics_label
from services.router.sessions import submit
from services.router.sessions.account import Account
from services.router.sessions.floor import Floor
from services.router.sessions.kv import hear
from services.router.sessions.ledger import Booking
from services.router.sessions.outbox import Outbox
from services.router.sessions.pulse import Pulse
from services.router.sessions.seats import Occupied, Seats
from services.router.sessions.sense import take_away_nonsense
from services.router.sessions.served import ServedMeter
from services.router.sessions.streamed import Streamed
from services.router.sessions.times import SessionTimes
from services.router.sessions.trial import NOBODY, trial

NO_CREDIT_PAUSE_S = 0.05
HEARTBEATS = 1.5
"""After its last sign of life a worker may have taken what killed it for so long."""
NOTHING = Cost(0, 0, 0)
_DEATHS = ("STALE", "HUNG", "REPLACED")
_RETURNED_FOR_GOOD = (
    session_pb2.RETURN_REASON_DRAINING,
    session_pb2.RETURN_REASON_PREEMPTED,
    session_pb2.RETURN_REASON_UNSUPPORTED,
)
"""The others say that it might have gone at another moment: its worker gets nothing for a little."""
log = logs.get(__name__)


class Session:
    """A worker's open session, from Welcome to its end."""

    def __init__(
        self,
        hello: session_pb2.Hello,
        session_id: str,
        times: SessionTimes,
        floor: Floor,
        metrics: RouterMetrics,
        *,
        frames_received: int,
        frames_sent: int,
        now: float,
    ) -> None:
        self.hello = hello
        self.worker_id = hello.worker_id
        self.model = hello.model
        self.session_id = session_id
        self.labels = frozenset(hello.labels.items()) | numerics_label(hello.digests.numerics)
        self.capabilities = frozenset(hello.capabilities)
        self.chain_kind = _chain_kind(hello)
        self.outbox = Outbox(frames_sent)
        self._account = Account()
        self.meter = ServedMeter(now)
        self.feed: KvFeed | None = None
        """Takes what the worker tells of its KV cache; None: nothing is to be learned."""
        self._step_model: StepModel | None = None
        self.draining = False
        self.began_s = self.last_frame_s = now
        self.breaks = 0
        """Sessions of this process before this one, each soon after the other, that broke."""
        self.closed = False
        self.close_error: errors.HeadraceError | None = None
        self.resumed: list[session_pb2.ResumeRequest] = []
        """Requests of the session before that go on in this one, for its Welcome."""
        self._times = times
        self._floor = floor
        self._metrics = metrics
        self._frames_received = frames_received
        self._owing = 0
        """Number of the last frame that the worker keeps something for until it hears that it came."""
        self._seats = Seats()
        self._died_s = inf
        """When what killed it had come, at the latest."""
        self._heard = 0
        """Number of the last command frame that the worker has acknowledged."""
        self._streamed = Streamed(floor, metrics)
        self._pulse = Pulse(times.hung_s)
        self._paused_until = 0.0
        self._conduct = Conduct(now)
        self._faults: set[str] = set()
        """Kinds of nonsense that were reported."""
        self._demand = Waiting(0, 0)

    def view(self, now: float) -> WorkerView:
        """What the scheduler needs to know, at this moment."""
        return self._account.view(
            self.hello,
            labels=self.labels,
            capabilities=self.capabilities,
            ready=self.takes_work(now),
            seats=len(self._seats),
            chain=self.chain_kind.key if self.chain_kind else b"",
            step_model=self._step_model,
        )

    def takes_work(self, now: float) -> bool:
        """Whether it may be given new requests."""
        ready = self.state(now) == admin_pb2.WORKER_STATE_READY and now >= self._paused_until
        return ready and not (self.closed or self._pulse.late)

    def state(self, now: float) -> admin_pb2.WorkerState:
        """Its state, as operators see it."""
        if self.draining:
            return admin_pb2.WORKER_STATE_DRAINING
        if now - self.last_frame_s > self._times.stale_s:
            return admin_pb2.WORKER_STATE_STALE
        return admin_pb2.WORKER_STATE_READY

    @property
    def load(self) -> session_pb2.Load:
        """Its last report."""
        return self._account.load

    @property
    def credit(self) -> session_pb2.Credit:
        """Its last grant."""
        return self._account.credit

    @property
    def seated(self) -> int:
        """Slots that are taken, also by what was cancelled until its worker has ended it."""
        return len(self._seats)

    def flights(self) -> list[Flight]:
        """The requests that it holds."""
        return self._seats.flights()

    def submit(self, flight: Flight, cost: Cost, now: float) -> None:
        """Seats a flight; the command leaves with the others of this turn."""
        slot = self._seats.free_slot()
        numerics = self.hello.digests.numerics
        flight.take_seat(Seat(self.worker_id, slot, numerics), now)
        commands = submit.commands(flight, slot, numerics, now)
        booking = Booking(cost, foreground=flight.order.latency_class is not LatencyClass.BATCH)
        self._account.book(booking)
        self._seats.take(slot, Occupied(flight.attempt, booking, flight))
        self.outbox.put(commands, booking)

    def claim(self, claim: session_pb2.Claim) -> None:
        """Asks for a request, whoever submitted it."""
        self.outbox.put([claim])

    def adopt(self, flight: Flight, handle: int, now: float) -> None:
        """Goes on, as the next attempt, with what runs there under `handle`: its load has it already."""
        slot = self._seats.free_slot()
        flight.take_seat(Seat(self.worker_id, slot, self.hello.digests.numerics), now)
        booking = Booking(NOTHING, foreground=flight.order.latency_class is not LatencyClass.BATCH)
        self._seats.take(slot, Occupied(flight.attempt, booking, flight))
        adopt = session_pb2.Adopt(
            handle=handle,
            slot=slot,
            attempt=flight.attempt,
            next_index=len(flight.ids),
            claim_key=flight.order.claimable.key,
        )
        self.outbox.put([adopt], booking)

    def cancel(self, flight: Flight) -> None:
        """Ends a flight's attempt; the command leaves with the others of this turn."""
        if flight.seat is None:
            return
        self._streamed.tell_of(flight, self.last_frame_s)
        slot, command = flight.seat.slot, Booking(NOTHING)
        flight.leave_seat()
        attempt = self._seats.cancel(slot, command)
        self.outbox.put([session_pb2.Cancel(slot=slot, attempt=attempt)], command)

    def tell_demand(self, waiting: Waiting) -> None:
        """Lets the worker know what would be submitted; at once when it begins or ends to be anything."""
        if waiting == self._demand:
            return
        urgent = bool(waiting.requests) != bool(self._demand.requests)
        self._demand = waiting
        demand = session_pb2.Demand(
            prefill_tokens=waiting.prefill_tokens,
            requests=waiting.requests,
            foreground_prefill_tokens=waiting.foreground_prefill_tokens,
            foreground_requests=waiting.foreground_requests,
        )
        self.outbox.demand(demand, urgent=urgent)

    def drain(self, grace_ms: int) -> None:
        """Gives it no new work and asks it to leave."""
        self.draining = True
        self.outbox.drain(grace_ms)
        self._floor.changed(self)

    def check(self, now: float) -> None:
        """Closes it when it has been silent or stuck for too long; otherwise acknowledges its frames."""
        if now - self.last_frame_s > self._times.lost_s:
            self._died_s = self.last_frame_s + HEARTBEATS * self._times.heartbeat_s
            self.close(errors.Unavailable(f"no frame for {now - self.last_frame_s:.1f} s", reason="STALE"))
            return
        if self._owing > self.outbox.acknowledged:
            self.outbox.wake()
        with suppress(errors.FailedPrecondition):  # it is closed
            for slot in self._seats.unanswered(self._heard, now):
                self._seats.free(slot)
                self._bad("unanswered_cancel")

    def close(self, error: errors.HeadraceError | None = None) -> None:
        """Ends the session; its requests are given up by who holds it."""
        if not self.closed:
            self.closed, self.close_error = True, error
            self._streamed.tell(self.last_frame_s)
            self.outbox.close()

    @property
    def may_come_back(self) -> bool:
        """Whether its worker may go on with its requests: it did not leave, and was not sent away."""
        return not self.draining and self.close_error is None

    @property
    def _died(self) -> bool:
        """Whether it ended as it does when an engine dies or hangs."""
        return self.close_error is None or self.close_error.reason in _DEATHS

    def take_up(self, flight: Flight, booking: Booking, handle: int) -> None:
        """Goes on with what the worker still holds under `handle`: its load has it, no credit is taken."""
        slot = self._seats.free_slot()
        flight.keep_seat(Seat(self.worker_id, slot, self.hello.digests.numerics))
        self._seats.take(slot, Occupied(flight.attempt, booking, flight))
        self.resumed.append(
            session_pb2.ResumeRequest(
                slot=slot,
                attempt=flight.attempt,
                next_index=len(flight.ids),
                handle=handle,
            )
        )

    def vacate(self) -> dict[int, Occupied]:
        """Frees all seats after the session has ended; what sat there is the caller's."""
        return self._seats.empty()

    def send_back_unsent(self) -> None:
        """After the session has ended: what never left for the worker waits again at its place."""
        for slot, seat in list(self._seats.by_slot.items()):
            if seat.flight is not None and seat.booking.number is None:
                flight = seat.flight
                self._seats.free(slot)
                flight.leave_seat()
                self._floor.again(flight)

    def give_up(self) -> None:
        """Moves all its requests after the session has ended."""
        self.send_back_unsent()
        flights = self.flights()
        self.vacate()
        verdict = trial(flights, self._died_s) if self._died else NOBODY
        for flight in flights:
            flight.leave_seat()
            if self.draining or flight in verdict.cleared:
                self._floor.leaves(flight)
            else:
                self._floor.lost(flight, verdict.of(flight))

    def handle(self, frame: session_pb2.WorkerFrame, now: float) -> None:
        """Takes one frame of the worker; what comes late counts no more.

        Raises FailedPrecondition when it has gone on with nonsense for too long.
        """
        if self.closed:
            return
        if frame.number != self._frames_received + 1:
            self._bad("frame_gap" if frame.number > self._frames_received else "duplicate_frame")
            self.close()  # not acknowledged, so all that is missing is told again in its next session
            return
        self._frames_received = self.outbox.acknowledge = frame.number
        if frame.updates or frame.HasField("credit"):
            self._owing = frame.number
        self.last_frame_s = now
        self._reported(frame)
        if frame.HasField("next_tokens"):
            self._next_tokens(frame.next_tokens, now)
        for update in frame.updates:
            self._update(update, now)
        self._streamed.count(now)
        for returned in frame.returned:
            self._returned(returned, now)
        for piece in frame.claimed:
            self._floor.claimed(self, piece)
        if frame.HasField("progress"):
            self._progressed(frame.progress, now)
        if frame.tenant_service:
            self._streamed.tell(now)
            self._floor.served(self, frame.tenant_service, now)
        self._heard_of_blocks(frame, now)
        self._floor.changed(self)

    def _reported(self, frame: session_pb2.WorkerFrame) -> None:
        for kind in take_away_nonsense(frame, self.hello.kv_spec.blocks, self.outbox.number):
            self._bad(kind)
        self._heard = max(self._heard, frame.acknowledged_command)
        self._account.reported(frame)
        if frame.HasField("step_model"):
            told = frame.step_model
            self._step_model = StepModel(told.a, told.b, told.c, told.d, told.e, told.upper_quantile)
        if frame.HasField("draining"):
            self.draining = True

    def _heard_of_blocks(self, frame: session_pb2.WorkerFrame, now: float) -> None:
        feed = self.feed
        if feed is None:
            return
        faults = feed.faults.total()
        hear(feed, frame, now)
        if feed.faults.total() > faults:  # what to do about it is the feed's business: a gap is no crime
            self._metrics.bad_frames.labels("kv_news").inc()
            log.info("kv_news_out_of_step", worker=self.worker_id, faults=dict(feed.faults), deaf=feed.deaf)
        if feed.snapshot_wanted(now):
            self.outbox.want_snapshot()

    def _update(self, update: session_pb2.SequenceUpdate, now: float) -> None:
        seat = self._seat(update.slot, update.attempt)
        if seat is None:
            return
        flight = seat.flight
        if flight is None:
            if update.HasField("end"):
                self._seats.free(update.slot)
            return
        had, before_s = len(flight.ids), flight.last_token_s
        progress = flight.advance(update, now)
        if len(flight.ids) > had:
            self._streamed.note(flight, had, before_s, now)
        if progress is not Progress.ONGOING:
            self._settle(flight, update.slot, progress, now)

    def _next_tokens(self, told: session_pb2.NextTokens, now: float) -> None:
        """One new id each of many flights; of columns that do not fit together nothing is taken."""
        columns = told.slots[:], told.attempts[:], told.indices[:], told.token_ids[:]
        if len(set(map(len, columns))) != 1:
            self._bad("torn_columns")
            return
        for slot, attempt, index, token in zip(*columns, strict=True):
            seat = self._seat(slot, attempt)
            flight = seat.flight if seat is not None else None
            if flight is None:
                continue
            had, before_s = len(flight.ids), flight.last_token_s
            progress = flight.next_token(index, token, now)
            if len(flight.ids) > had:
                self._streamed.note(flight, had, before_s, now)
            if progress is not Progress.ONGOING:
                self._settle(flight, slot, progress, now)

    def _settle(self, flight: Flight, slot: int, progress: Progress, now: float) -> None:
        self._streamed.tell_of(flight, now)
        if progress in (Progress.CUT, Progress.GAP):
            self.cancel(flight)
        else:
            self._seats.free(slot)
            flight.leave_seat()
        if progress is Progress.GAP:
            self._bad("index_gap")
        if progress in (Progress.GAP, Progress.LOST):
            self._floor.lost(flight)
        else:
            self._floor.over(flight)

    def _returned(self, returned: session_pb2.Returned, now: float) -> None:
        seat = self._seat(returned.slot, returned.attempt)
        if seat is None:
            return
        self._seats.free(returned.slot)
        if returned.reason not in _RETURNED_FOR_GOOD:
            self._paused_until = now + max(returned.retry_ms / 1000, NO_CREDIT_PAUSE_S)
        if seat.flight is not None:
            flight = seat.flight
            flight.leave_seat()
            if returned.reason == session_pb2.RETURN_REASON_UNSUPPORTED:
                flight.barred |= {self.worker_id}
            self._metrics.returned.labels(_reason(returned.reason)).inc()
            if returned.reason == session_pb2.RETURN_REASON_DRAINING:
                self._floor.leaves(flight)
            else:
                self._floor.again(flight)

    def _progressed(self, progress: session_pb2.Progress, now: float) -> None:
        stuck_s = self._pulse.stuck_s(progress, self.load, self._step_model, now)
        if stuck_s is not None:
            self._died_s = now - stuck_s + HEARTBEATS * self._times.heartbeat_s
            self.close(errors.Unavailable(f"no step finished for {stuck_s:.1f} s", reason="HUNG"))

    def _seat(self, slot: int, attempt: int) -> Occupied | None:
        seat = self._seats.by_slot.get(slot)
        if seat is None:
            self._bad("unknown_slot")
        elif seat.attempt != attempt:
            self._bad("other_attempt")
            return None
        return seat

    def misbehaved(self, kind: str) -> None:
        """Counts nonsense that the worker sent. Raises FailedPrecondition when there is too much of it."""
        self._bad(kind)

    def unreadable(self, error: errors.InvalidArgument) -> None:
        """The worker sent what is no frame: nothing can be trusted after it."""
        self._note("unreadable")
        self.close(error)

    def _bad(self, kind: str) -> None:
        self._note(kind)
        if self._conduct.fault(self.last_frame_s):
            self.close(error := errors.FailedPrecondition("too many bad frames", reason="BAD_FRAMES"))
            raise error

    def _note(self, kind: str) -> None:
        self._metrics.bad_frames.labels(kind).inc()
        if kind not in self._faults:
            self._faults.add(kind)
            log.warning("bad_frame", worker=self.worker_id, kind=kind)


def _chain_kind(hello: session_pb2.Hello) -> ChainKind | None:
    """None: it never says what it keeps, or not in blocks that others have, too."""
    if "prefix_cache" not in hello.capabilities or hello.kv_spec.block_tokens != BLOCK_TOKENS:
        return None
    return ChainKind(hello.digests.numerics, hello.kv_spec.block_tokens)


def _reason(reason: session_pb2.ReturnReason) -> str:
    try:
        return session_pb2.ReturnReason.Name(reason).removeprefix("RETURN_REASON_").lower()
    except ValueError:
        return "unknown"
