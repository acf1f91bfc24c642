"""Requests that wait meet workers that have credit: the one place that changes both.

Everything here is synchronous and runs within one turn of the event loop: choice, booking and the command to
the worker cannot be torn apart. What to choose is the scheduler's business (`policy`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf

from services.common import errors, logs
from services.router.metrics import RouterMetrics
from services.router.policy import ClassPolicy, Cost, LatencyClass, PolicySettings, Scheduler
from services.router.relay.flight import Flight
from services.router.sessions.session import Session
from services.router.sessions.workers import Workers
from services.router.settings import RouterSettings

TICK_S = 0.1
TICKS_A_SURVEY = 3
"""What costs time in proportion to the queue is done every so many ticks."""
_SLEPT_S = 0.5
RETRY_S = 1.0
log = logs.get(__name__)


class Dispatcher:
    """All requests between acceptance and end, and the workers that run them."""

    def __init__(self, settings: RouterSettings, workers: Workers, metrics: RouterMetrics) -> None:
        self.scheduler = Scheduler(policy_of(settings))
        self.workers = workers
        self._resumes = settings.limits.resumes
        self._max_waiting = settings.limits.queued_requests
        self._metrics = metrics
        self._flights: dict[int, Flight] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._on_start: dict[int, Callable[[], None]] = {}
        self._changed: set[Session] = set()
        self._ticks = 0

    def __len__(self) -> int:
        return len(self._flights)

    def launch(self, flight: Flight, *, wait: bool, on_start: Callable[[], None]) -> None:
        """Takes a request in. `on_start` is called when it first gets a worker.

        Failures reach the caller through the flight's outlet.
        """
        number = flight.order.number
        self._flights[number] = flight
        self._on_start[number] = on_start
        self._watch_deadline(flight)
        if len(self.scheduler) >= self._max_waiting:
            self.end(flight, errors.Overloaded("too many requests wait", retry_s=RETRY_S))
            return
        self._queue(flight)
        if not wait and flight.seat is None:
            message = "the request cannot start now and was not to wait"
            self.end(flight, errors.Overloaded(message, reason="WOULD_QUEUE", retry_s=RETRY_S))

    def leave(self, flight: Flight) -> None:
        """The client is done with the request, or gone: it holds nothing any more when this returns."""
        number = flight.order.number
        self._withdraw(flight)
        self.scheduler.ended(number)
        self._flights.pop(number, None)
        self._on_start.pop(number, None)
        timer = self._timers.pop(number, None)
        if timer is not None:
            timer.cancel()

    def end(self, flight: Flight, error: errors.HeadraceError) -> None:
        """Ends a request with an error, wherever it is."""
        flight.fail(error)
        self._withdraw(flight)

    def join(self, session: Session) -> None:
        """A worker is there. An earlier session of the same worker is over."""
        earlier = self.workers.add(session)
        self._changed.add(session)
        if earlier is not None:
            earlier.close(errors.Aborted("another session of this worker began", reason="REPLACED"))
            earlier.give_up()
        log.info("worker_joined", worker=session.worker_id, model=session.model, engine=session.hello.engine)
        self.changed(session)

    def part(self, session: Session) -> None:
        """A session is over: what it held moves."""
        self._changed.discard(session)
        if self.workers.remove(session):
            self.scheduler.worker_gone(session.worker_id)
            self._metrics.forget(session.worker_id)
        held = len(session.flights())
        session.give_up()
        error = session.close_error
        log.info("worker_left", worker=session.worker_id, held=held, why=error.reason if error else "ended")
        self._dispatch()

    def changed(self, session: Session) -> None:
        """Floor: a session may take more or other work than before."""
        self._changed.add(session)
        if len(self.scheduler):
            self._dispatch()

    def again(self, flight: Flight) -> None:
        """Floor: a request came back without harm; it waits at its old place."""
        if not flight.over:
            self._queue(flight)

    def lost(self, flight: Flight, *, alone: bool) -> None:
        """Floor: a request lost its attempt; it goes on elsewhere unless that happened too often."""
        if not flight.over and flight.lose_worker(alone=alone, resumes=self._resumes):
            self._metrics.moved.inc()
            self._queue(flight)

    def tick(self, now: float, slept_s: float) -> None:
        """Housekeeping, every TICK_S. When this process itself slept, no worker is blamed for silence."""
        for session in self.workers:
            if slept_s > _SLEPT_S:
                session.last_frame_s += slept_s
            session.check(now)
        for flight in list(self._flights.values()):
            slow = None if flight.over else flight.outlet.too_slow(now)
            if slow is not None:
                self.end(flight, slow)
        self._changed.update(self.workers)
        self._dispatch()
        self._ticks += 1
        if self._ticks % TICKS_A_SURVEY == 0:
            self._give_up_waiting(now)
            self._metrics.observe(self.scheduler, self.workers, now)

    async def keep_house(self) -> None:
        """Ticks for ever."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self.tick(now, slept_s=now - last - TICK_S)
            last = now

    def close(self) -> None:
        """Ends all sessions and requests."""
        for flight in list(self._flights.values()):
            self.end(flight, errors.Unavailable("the router stops", retry_s=RETRY_S))
        for session in self.workers:
            session.close(errors.Unavailable("the router stops", retry_s=RETRY_S))

    def _queue(self, flight: Flight) -> None:
        flight.waiting_since = time.monotonic()
        self.scheduler.submit(flight.order.ticket(len(flight.ids), flight.barred), flight.waiting_since)
        self._dispatch()

    def _dispatch(self) -> None:
        now = time.monotonic()
        for session in self._changed:
            if self.workers.get(session.worker_id) is session:
                self.scheduler.worker_changed(session.view(now))
        self._changed.clear()
        while (assignment := self.scheduler.next(now)) is not None:
            self._seat(self._flights[assignment.ticket.number], assignment.worker, assignment.cost, now)
        for session in self.workers:
            session.tell_demand(self.scheduler.waiting(session.model))

    def _seat(self, flight: Flight, worker_id: str, cost: Cost, now: float) -> None:
        session = self.workers.get(worker_id)
        assert session is not None, "the scheduler knows only workers that are there"
        session.submit(flight, cost, now)
        self._changed.add(session)
        latency_class: LatencyClass = flight.order.latency_class
        self._metrics.queue_seconds.labels(latency_class.name.lower()).observe(now - flight.waiting_since)
        started = self._on_start.pop(flight.order.number, None)
        if started is not None:
            started()

    def _withdraw(self, flight: Flight) -> None:
        if flight.seat is None:
            self.scheduler.remove(flight.order.number)
            return
        session = self.workers.get(flight.seat.worker_id)
        if session is not None:
            session.cancel(flight)

    def _watch_deadline(self, flight: Flight) -> None:
        deadline_s = flight.order.deadline_s
        if deadline_s is not None:
            self._timers[flight.order.number] = asyncio.get_running_loop().call_later(
                max(0.0, deadline_s - time.monotonic()), self._deadline_passed, flight
            )

    def _deadline_passed(self, flight: Flight) -> None:
        self.end(flight, errors.DeadlineExceeded("the deadline passed before the answer was complete"))

    def _give_up_waiting(self, now: float) -> None:
        for ticket in self.scheduler.impatient(now):
            message = f"no worker is there that can run this request of model {ticket.model!r}"
            error = errors.Unavailable(message, reason="NO_WORKER", retry_s=RETRY_S)
            self.end(self._flights[ticket.number], error)


def policy_of(settings: RouterSettings) -> PolicySettings:
    """What the scheduler is to do, from what the router was told."""
    defaults = PolicySettings().classes
    return PolicySettings(
        classes={
            each: ClassPolicy(
                share=defaults[each].share,
                ttft_s=told.ttft_s,
                tpot_s=told.tpot_s,
                aging_s=told.aging_s,
                aging_deadline_share=defaults[each].aging_deadline_share,
                patience_s=told.patience_s or inf,
            )
            for each, told in settings.classes.items()
        }
    )
