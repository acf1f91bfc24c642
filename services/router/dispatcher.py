"""Requests that wait meet workers that have credit: the one place that changes both.

Everything here is synchronous and runs within one turn of the event loop: choice, booking and the command to
the worker cannot be torn apart. What to choose is the scheduler's business (`policy`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice

from headrace.v1 import session_pb2

from services.common import errors
from services.router import scheduling
from services.router.attendance import Attendance
from services.router.continuity.adoption import Adoption
from services.router.continuity.failover import Failover
from services.router.flights import Flights
from services.router.housekeeping import Housekeeping
from services.router.kv_shares import KvShares
from services.router.metrics import RouterMetrics
from services.router.policy import Assignment, QueueLimits, Scheduler, Ticket
from services.router.quotas import Quotas
from services.router.relay.attempt import Blame
from services.router.relay.flight import Flight
from services.router.relay.order import Order
from services.router.sessions.found import Found
from services.router.sessions.session import Session
from services.router.sessions.workers import Workers
from services.router.settings import RouterSettings

RETRY_S = 1.0
MOVED_A_TURN = 32
"""Of a lost worker's requests so many are placed before others' frames are heard, and commands leave."""


class Dispatcher:
    """All requests between acceptance and end, and the workers that run them."""

    def __init__(
        self, settings: RouterSettings, workers: Workers, metrics: RouterMetrics, quotas: Quotas | None = None
    ) -> None:
        """Raises SettingsError: one line for each contradiction."""
        self.scheduler = Scheduler(scheduling.policy_settings(settings))
        self.workers = workers
        self._attendance = Attendance(self.scheduler, workers, metrics, settings.session.resume_grace_s)
        self._failover = Failover(settings.failover, self.scheduler, workers, metrics, self._dispatch)
        times = settings.session
        self.adoption = Adoption(lambda: workers, times.orphan_hold_s, times.lost_s)
        self._kv_shares = KvShares(self.scheduler, quotas or Quotas())
        self._resumes = settings.limits.resumes
        self._max_waiting = settings.limits.queued_requests
        self._metrics = metrics
        self.flights = Flights(self._deadline_passed)
        self._changed: set[Session] = set()
        self._told_demand = False
        """Whether workers think that something waits."""
        self.housekeeping = Housekeeping(self, self._failover, self._attendance, self._kv_shares, metrics)
        metrics.flights.set_function(self.__len__)

    def __len__(self) -> int:
        return len(self.flights)

    def within_budget(self, order: Order) -> bool:
        """Whether its tenant may have an interactive request more; counts it if so."""
        return self.scheduler.within_budget(order.first_ticket, time.monotonic())

    def launch(
        self, flight: Flight, *, limits: QueueLimits | None = None, on_start: Callable[[], None]
    ) -> None:
        """Takes a request in, or refuses it. `on_start` is called when it first gets a worker.

        Failures reach the caller through the flight's outlet.
        """
        self._hold(flight, on_start)
        ticket = flight.ticket(self.workers.chain_kinds(flight.order.model))
        refusal = self._refusal(flight.order, ticket, limits)
        if refusal is not None:
            self.end(flight, refusal)
            return
        self._line_up(flight, ticket, time.monotonic())
        self._dispatch()
        if not flight.order.wait and flight.seat is None:
            message = "the request cannot start now and was not to wait"
            self.end(flight, errors.Overloaded(message, reason="WOULD_QUEUE", retry_s=RETRY_S))

    def take_up(self, flight: Flight, found: Found | None) -> None:
        """Goes on with a request that another call left: where it runs, else as another attempt."""
        self._hold(flight)
        if flight.over:
            return
        session = found.session if found is not None else None
        if found is None or session is None or self.workers.get(session.worker_id) is not session:
            self._queue(flight)
            return
        session.adopt(flight, found.handle, time.monotonic())
        self._changed.add(session)

    def leave(self, flight: Flight) -> None:
        """The client is done with the request, or gone: it holds nothing any more when this returns."""
        number = flight.order.number
        self._withdraw(flight)
        self._kv_shares.left(number, time.monotonic())
        self.scheduler.ended(number, flight.reported_cached)
        self.flights.forget(flight)

    def end(self, flight: Flight, error: errors.HeadraceError) -> None:
        """Ends a request with an error, wherever it is."""
        flight.fail(error)
        self._withdraw(flight)
        self.scheduler.ended(flight.order.number)

    def join(self, session: Session) -> None:
        """A worker is there. An earlier session of the same worker is over."""
        earlier = self._attendance.join(session, time.monotonic())
        for flight in self._failover.join(session, earlier):
            self.again(flight)
        self.adoption.joined(session)
        self.changed(session)

    def part(self, session: Session) -> None:
        """A session is over: what it held moves, or waits a little for its worker."""
        self._changed.discard(session)
        self._attendance.part(session, time.monotonic())
        self._failover.part(session)
        self.adoption.parted(session)
        self._dispatch()

    def changed(self, session: Session) -> None:
        """Floor: a session may take more or other work than before."""
        self._changed.add(session)
        if len(self.scheduler) or self._failover.migrations:
            self._dispatch()

    def again(self, flight: Flight) -> None:
        """Floor: a request came back without harm; it waits at its old place."""
        if not flight.over:
            self._queue(flight)

    def lost(self, flight: Flight, blame: Blame = Blame.NONE) -> None:
        """Floor: a request lost its attempt; it goes on elsewhere unless that happened too often."""
        if not flight.over and flight.lose_worker(blame, resumes=self._resumes):
            self.leaves(flight)

    def leaves(self, flight: Flight) -> None:
        """Floor: a request has left its worker for good; it goes on elsewhere when its turn is there."""
        if not flight.over:
            self._metrics.moved.inc()
            self._kv_shares.left(flight.order.number, time.monotonic())
            self._failover.migrations.add(flight)

    def streamed(self, made: Mapping[Flight, int], now: float) -> None:
        """Floor: requests got output tokens."""
        self.scheduler.streamed_together({each.order.number: tokens for each, tokens in made.items()}, now)
        if self._failover.migrations.passing:
            for each in made:
                self._failover.migrations.discard(each)

    def over(self, flight: Flight) -> None:
        """Floor: a request has ended, and holds no worker any more."""
        self._kv_shares.left(flight.order.number, time.monotonic())
        self._failover.migrations.discard(flight)
        self.scheduler.ended(flight.order.number, flight.reported_cached)

    def served(self, session: Session, told: Iterable[session_pb2.TenantService], now: float) -> None:
        """Floor: what a worker has done for tenants in all."""
        self._attendance.served(session, told, now)

    def claimed(self, session: Session, piece: session_pb2.Claimed) -> None:
        """Floor: what the worker says of a request that is looked for."""
        self.adoption.answered(session, piece)

    def refresh(self) -> None:
        """Looks at all workers anew, and gives out what can go."""
        self._changed.update(self.workers)
        self._dispatch()

    def move(self, session: Session, flight: Flight, now: float) -> None:
        """Takes a stream from a worker that leaves, or is slow, where another has room for it now."""
        ticket = replace(flight.ticket(()), barred=flight.barred | {session.worker_id})
        fleet = self.scheduler.fleet(session.model)
        if not (fleet.suited(ticket) & fleet.affordable(ticket.cost, ticket.foreground)).any():
            return
        session.cancel(flight)
        self._metrics.moved.inc()
        self._failover.migrations.pass_on(flight, self._failover.room(session.model), now)
        self._wait(flight, now, without=session.worker_id)
        self._dispatch()
        if flight.seat is None and not flight.over:
            self._queue(flight)

    def close(self) -> None:
        """Ends all sessions and calls. Workers go on with the requests: other routers may take them up."""
        stops = errors.Unavailable("the router stops", reason="ROUTER_STOPS", retry_s=RETRY_S)
        for session in self.workers:
            session.close(stops)
        self._failover.close()
        for flight in self.flights:
            self.end(flight, stops)

    def _hold(self, flight: Flight, on_start: Callable[[], None] | None = None) -> None:
        self.flights.hold(flight, on_start)
        self._attendance.tenants.note(flight.order.tenant_tag, flight.order.tenant)

    def _queue(self, flight: Flight) -> None:
        self._wait(flight, time.monotonic())
        self._dispatch()

    def _wait(self, flight: Flight, now: float, *, without: str | None = None) -> None:
        """Queues a request; `without`: the worker that it has just left."""
        ticket = flight.ticket(self.workers.chain_kinds(flight.order.model))
        if without is not None:
            ticket = replace(ticket, barred=ticket.barred | {without})
        self._line_up(flight, ticket, now)

    def _line_up(self, flight: Flight, ticket: Ticket, now: float) -> None:
        flight.waiting_since = now
        self._kv_shares.left(flight.order.number, now)
        self.scheduler.submit(ticket, now)

    def _dispatch(self) -> None:
        now = time.monotonic()
        moved = self._moved(now) if self._failover.migrations else []
        for flight in moved:
            self._wait(flight, now)
        if len(moved) == MOVED_A_TURN:
            asyncio.get_running_loop().call_soon(self._dispatch)
        for session in self._changed:
            if self.workers.get(session.worker_id) is session:
                self.scheduler.worker_changed(session.view(now))
        self._changed.clear()
        while (assignment := self.scheduler.next(now)) is not None:
            self._seat(assignment, now)
        self._make_way(now)
        self._tell_demand()

    def _moved(self, now: float) -> list[Flight]:
        """Requests that have lost their worker, and whose turn it is to wait for another."""
        return list(islice(self._failover.released(now), MOVED_A_TURN))

    def _tell_demand(self) -> None:
        if not (len(self.scheduler) or self._told_demand):
            return
        self._told_demand = bool(len(self.scheduler))
        waiting = {model: self.scheduler.waiting(model) for model in self.workers.models()}
        for session in self.workers:
            session.tell_demand(waiting[session.model])

    def _seat(self, assignment: Assignment, now: float) -> None:
        flight = self.flights[assignment.ticket.number]
        session = self.workers.get(assignment.worker)
        assert session is not None, "the scheduler gives work only to workers that are ready"
        flight.predict(assignment.predicted)
        session.submit(flight, assignment.cost, now)
        self._changed.add(session)
        self._kv_shares.seated(assignment, now)
        self._metrics.seated(flight, assignment, now)
        self.flights.started(flight)

    def _make_way(self, now: float) -> None:
        """Batch requests leave their workers for interactive ones; they keep output and place."""
        for displacement in self.scheduler.give_way(now):
            flight = self.flights.get(displacement.number)
            session = self.workers.get(displacement.worker)
            if flight is None or flight.over or flight.seat is None or session is None:
                continue
            session.cancel(flight)
            self._metrics.displaced.labels("paused" if displacement.begun else "returned").inc()
            self._wait(flight, now)

    def _refusal(
        self, order: Order, ticket: Ticket, limits: QueueLimits | None
    ) -> errors.HeadraceError | None:
        if self.scheduler.full(order.tenant, self._max_waiting):
            return errors.Overloaded("too many requests wait", retry_s=RETRY_S)
        refusal = self.scheduler.admit(ticket, time.monotonic(), limits)
        self._metrics.admitted(order, refusal)
        return scheduling.refused(refusal) if refusal is not None else None

    def _withdraw(self, flight: Flight) -> None:
        self._failover.migrations.discard(flight)
        if flight.seat is None:
            self.scheduler.remove(flight.order.number)
            return
        session = self._failover.session_of(flight)
        if session is not None:
            session.cancel(flight)

    def _deadline_passed(self, flight: Flight) -> None:
        self.end(flight, errors.DeadlineExceeded("the deadline passed before the answer was complete"))
