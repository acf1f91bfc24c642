"""One worker as this router holds it: what it is given, and how its session begins and ends.

What it says is `hearing`. A worker that goes on with nonsense is closed.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf

from headrace.v1 import admin_pb2, session_pb2

from services.common import errors
from services.router.metrics import BadFrame, RouterMetrics
from services.router.policy import Cost, LatencyClass, Waiting, WorkerView
from services.router.policy.kv_feed import KvFeed
from services.router.relay.attempt import Seat, numerics_label
from services.router.relay.flight import Flight
from services.router.sessions import submit
from services.router.sessions.account import Account
from services.router.sessions.faults import Faults
from services.router.sessions.floor import Floor
from services.router.sessions.hearing import Hearing
from services.router.sessions.kv import chain_kind
from services.router.sessions.ledger import Booking
from services.router.sessions.outbox import Outbox
from services.router.sessions.pulse import Pulse
from services.router.sessions.seats import Occupied, Seats
from services.router.sessions.served import ServedMeter
from services.router.sessions.times import SessionTimes
from services.router.sessions.trial import NOBODY, trial

HEARTBEATS = 1.5
"""After its last sign of life a worker may have taken what killed it for so long."""
NOTHING = Cost(0, 0, 0)
_DEATHS = ("STALE", "HUNG", "REPLACED")


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
        self.incarnation = hello.incarnation
        self.session_id = session_id
        self.labels = frozenset(hello.labels.items()) | numerics_label(hello.digests.numerics)
        self.capabilities = frozenset(hello.capabilities)
        self.chain_kind = chain_kind(hello)
        self.outbox = Outbox(frames_sent)
        self.account = Account()
        self.meter = ServedMeter(now)
        self.feed: KvFeed | None = None
        """Takes what the worker tells of its KV cache; None: nothing is to be learned."""
        self.draining = False
        self.began_s = self.last_frame_s = now
        self.breaks = 0
        """Sessions of this process before this one, each soon after the other, that broke."""
        self.closed = False
        self.close_error: errors.HeadraceError | None = None
        self.resumed: list[session_pb2.ResumeRequest] = []
        """Requests of the session before that go on in this one, for its Welcome."""
        self.displaced: frozenset[int] = frozenset()
        """Incarnations of other processes that had this worker's name and were there when this one came."""
        self._times = times
        self._floor = floor
        self._frames_received = frames_received
        self._owing = 0
        """Number of the last frame that the worker keeps something for until it hears that it came."""
        self._sent = 0
        """Number of the last frame that had left when this was looked at before."""
        self._seats = Seats()
        self._died_s = inf
        """When what killed it had come, at the latest."""
        self._hearing = Hearing(self, self._seats, floor, metrics)
        self._pulse = Pulse(times.hung_s)
        self.paused_until_s = 0.0
        """It gets nothing new before."""
        self._faults = Faults(hello.worker_id, metrics, now)
        self._demand = Waiting(0, 0)

    def view(self, now: float) -> WorkerView:
        """What the scheduler needs to know, at this moment."""
        return self.account.view(
            self.hello,
            labels=self.labels,
            capabilities=self.capabilities,
            ready=self.takes_work(now),
            seats=len(self._seats),
            chain=self.chain_kind.key if self.chain_kind else b"",
        )

    def takes_work(self, now: float) -> bool:
        """Whether it may be given new requests."""
        ready = self.state(now) == admin_pb2.WORKER_STATE_READY and now >= self.paused_until_s
        return ready and not (self.closed or self._pulse.late)

    def state(self, now: float) -> admin_pb2.WorkerState:
        """Its state, as operators see it."""
        if self.draining:
            return admin_pb2.WORKER_STATE_DRAINING
        if now - self.last_frame_s > self._times.stale_s:
            return admin_pb2.WORKER_STATE_STALE
        return admin_pb2.WORKER_STATE_READY

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
        flight.take_seat(self._seat(slot), now)
        commands = submit.commands(flight, slot, numerics, now)
        booking = Booking(cost, foreground=flight.order.latency_class is not LatencyClass.BATCH)
        self.account.book(booking)
        self._seats.take(slot, Occupied(flight.attempt, booking, flight))
        self.outbox.put(commands, booking)

    def _seat(self, slot: int) -> Seat:
        return Seat(self.worker_id, slot, self.hello.digests.numerics, self.hello.merges)

    def claim(self, claim: session_pb2.Claim) -> None:
        """Asks for a request, whoever submitted it."""
        self.outbox.put([claim])

    def adopt(self, flight: Flight, handle: int, now: float) -> None:
        """Goes on, as the next attempt, with what runs there under `handle`: its load has it already."""
        slot = self._seats.free_slot()
        flight.take_seat(self._seat(slot), now)
        booking = Booking(NOTHING, foreground=flight.order.latency_class is not LatencyClass.BATCH)
        self._seats.take(slot, Occupied(flight.attempt, booking, flight))
        self.outbox.put([submit.adoption(flight, slot, handle)], booking)

    def cancel(self, flight: Flight) -> None:
        """Ends a flight's attempt; the command leaves with the others of this turn."""
        if flight.seat is None:
            return
        self._hearing.streamed.tell_of(flight, self.last_frame_s)
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
        self.outbox.demand(submit.demand(waiting), urgent=urgent)

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
        if self._owing > self.outbox.acknowledged or self._hearing.last_command < self._sent:
            self.outbox.wake()  # of frames that were lost an idle worker learns by the gap before the next
        self._sent = self.outbox.number
        with suppress(errors.FailedPrecondition):  # it is closed
            for slot in self._seats.unanswered(self._hearing.last_command, now):
                self._seats.free(slot)
                self.misbehaved("unanswered_cancel")

    def close(self, error: errors.HeadraceError | None = None) -> None:
        """Ends the session; its requests are given up by who holds it."""
        if not self.closed:
            self.closed, self.close_error = True, error
            self._hearing.streamed.tell(self.last_frame_s)
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
        flight.keep_seat(self._seat(slot))
        self._seats.take(slot, Occupied(flight.attempt, booking, flight))
        self.resumed.append(submit.resumption(flight, slot, handle))

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
            self.misbehaved("frame_gap" if frame.number > self._frames_received else "duplicate_frame")
            self.close()  # not acknowledged, so all that is missing is told again in its next session
            return
        self._frames_received = self.outbox.acknowledge = frame.number
        if frame.updates or frame.HasField("credit"):
            self._owing = frame.number
        self.last_frame_s = now
        self._hearing.take(frame, now)

    def progressed(self, progress: session_pb2.Progress, now: float) -> None:
        """The worker says how far its engine is; one that hangs is closed."""
        stuck_s = self._pulse.stuck_s(progress, self.account.load, self.account.step_model, now)
        if stuck_s is not None:
            self._died_s = now - stuck_s + HEARTBEATS * self._times.heartbeat_s
            self.close(errors.Unavailable(f"no step finished for {stuck_s:.1f} s", reason="HUNG"))

    def misbehaved(self, kind: BadFrame) -> None:
        """Counts nonsense that the worker sent. Raises FailedPrecondition when there is too much of it."""
        if self._faults.too_many(kind, self.last_frame_s):
            self.close(error := errors.FailedPrecondition("too many bad frames", reason="BAD_FRAMES"))
            raise error

    def unreadable(self, error: errors.InvalidArgument) -> None:
        """The worker sent what is no frame: nothing can be trusted after it."""
        self._faults.note("unreadable")
        self.close(error)
