"""What passing time alone brings about: silence, stalled readers, moves, and the end of patience."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from services.common import errors
from services.router.attendance import Attendance
from services.router.continuity.failover import Failover
from services.router.kv_shares import KvShares
from services.router.metrics import RouterMetrics
from services.router.stock import take_stock

if TYPE_CHECKING:
    from services.router.dispatcher import Dispatcher

TICK_S = 0.1
TICKS_A_SURVEY = 3
"""What costs time in proportion to the queue is done every so many ticks."""
_SLEPT_S = 0.5
RETRY_S = 1.0


class Housekeeping:
    """Looks at everything every TICK_S."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        failover: Failover,
        attendance: Attendance,
        kv_shares: KvShares,
        metrics: RouterMetrics,
    ) -> None:
        self.ticks = 0
        self._dispatcher = dispatcher
        self._failover = failover
        self._attendance = attendance
        self._kv_shares = kv_shares
        self._metrics = metrics

    async def run(self) -> None:
        """Ticks for ever."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self.tick(now, slept_s=now - last - TICK_S)
            last = now

    def tick(self, now: float, slept_s: float) -> None:
        """One look. When this process itself slept, no worker is blamed for silence."""
        for session in self._dispatcher.workers:
            if slept_s > _SLEPT_S:
                session.last_frame_s += slept_s
            session.check(now)
        for session, flight in self._failover.from_leaving(now):
            self._dispatcher.move(session, flight, now)
        self._end_slow(now)
        self._attendance.expire(now)
        self._kv_shares.review(now)
        self._dispatcher.refresh()
        self.ticks += 1
        if self.ticks % TICKS_A_SURVEY == 0:
            self._survey(now)

    def _survey(self, now: float) -> None:
        self._give_up_waiting(now)
        for session, flight in self._failover.better_off(now):
            self._dispatcher.move(session, flight, now)
        take_stock(self._metrics, self._dispatcher.scheduler, self._dispatcher.workers, now)

    def _end_slow(self, now: float) -> None:
        """Only what runs can have output that nobody reads: what waits is not looked at."""
        for session in self._dispatcher.workers:
            for flight in session.flights():
                stuck = flight.outlet.held_up and not flight.over
                if stuck and (slow := flight.outlet.too_slow(now)) is not None:
                    self._dispatcher.end(flight, slow)

    def _give_up_waiting(self, now: float) -> None:
        for ticket in self._dispatcher.scheduler.impatient(now):
            error = errors.Unavailable(ticket.unserved, reason="NO_WORKER", retry_s=RETRY_S)
            self._dispatcher.end(self._dispatcher.flights[ticket.number], error)
