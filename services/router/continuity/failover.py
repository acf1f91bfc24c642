"""What happens to requests whose worker is lost, comes back, or leaves.

    a session breaks    its requests keep their seats for a moment: the same process may be back with them
    it is back          what it holds goes on there, replayed from the next index; the rest goes elsewhere
    it is not           all go elsewhere as their next attempt; what it says of them later counts no more
    it is draining      its streams go elsewhere as fast as others take them, and stay where nobody does
    another is better   streams that end sooner there, recomputation included, go there (`policy.moving`)

That moment is as long as others would take to compute them again, within bounds: so nobody waits much longer
than it takes to be moved, and what costs much to move is not moved for a hiccup. What goes elsewhere passes
`Migrations`, which bounds how many are on their way at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import NamedTuple

import numpy as np

from services.common import errors, logs
from services.router.continuity.migrations import Migrations, Room, turn
from services.router.continuity.settings import FailoverSettings
from services.router.metrics import RouterMetrics
from services.router.policy import Scheduler
from services.router.policy.moving import (
    MovingSettings,
    Stream,
    arrivals_a_s,
    expected_left,
    moves,
    slow_workers,
)
from services.router.policy.speed import Floats
from services.router.relay.attempt import numerics_label
from services.router.relay.flight import Flight
from services.router.sessions.resume import hand_over, same_process
from services.router.sessions.session import Session
from services.router.sessions.workers import Workers

log = logs.get(__name__)


SOON_S = 1.0
MOST_RETURN_S = 0.25
MOST_BREAKS = 3
"""Sessions in a row that broke within SOON_S: after that its requests do not wait for it."""


class _Seated(NamedTuple):
    session: Session
    flight: Flight
    stream: Stream


class _Parted(NamedTuple):
    session: Session
    timer: asyncio.TimerHandle


class Failover:
    """Requests between two workers. All methods are synchronous; times in seconds."""

    def __init__(
        self,
        settings: FailoverSettings,
        scheduler: Scheduler,
        workers: Workers,
        metrics: RouterMetrics,
        dispatch: Callable[[], None],
    ) -> None:
        self.migrations = Migrations(settings.migration_s)
        self._settings = settings
        self._moving = MovingSettings(saved_s=settings.moving_saved_s)
        self._scheduler = scheduler
        self._workers = workers
        self._metrics = metrics
        self._dispatch = dispatch
        self._parted: dict[str, _Parted] = {}

    def join(self, session: Session, earlier: Session | None) -> list[Flight]:
        """A worker is there; `earlier`: its session until now. Returns requests that it no longer holds."""
        parted = self._parted.pop(session.worker_id, None)
        if parted is not None:
            parted.timer.cancel()
            earlier = parted.session
        if earlier is None:
            return []
        session.breaks = earlier.breaks + 1 if session.began_s - earlier.began_s < SOON_S else 0
        if session.breaks > MOST_BREAKS and earlier.close_error is None:
            earlier.close_error = errors.Unavailable("its sessions break again and again", reason="BREAKS")
        if not same_process(earlier, session) or session.breaks > MOST_BREAKS:
            earlier.give_up()
            return []
        gone = hand_over(earlier, session)
        self._metrics.resumed.inc(len(session.resumed))
        log.info("session_resumed", worker=session.worker_id, resumed=len(session.resumed), gone=len(gone))
        return gone

    def part(self, session: Session) -> None:
        """A session is over: its requests wait for its worker, or go elsewhere."""
        session.send_back_unsent()
        if not session.flights():
            session.give_up()
        elif session.may_come_back and self._settings.return_s:
            timer = asyncio.get_running_loop().call_later(self._return_s(session), self._expire, session)
            self._parted[session.worker_id] = _Parted(session, timer)
        else:
            session.give_up()

    def session_of(self, flight: Flight) -> Session | None:
        """Where a request is seated: in an open session, or in one whose worker may be back."""
        if flight.seat is None:
            return None
        parted = self._parted.get(flight.seat.worker_id)
        return parted.session if parted is not None else self._workers.get(flight.seat.worker_id)

    def released(self, now: float) -> Iterator[Flight]:
        """Moved requests whose turn it is to be queued."""
        for model in self.migrations.models():
            yield from self.migrations.release(model, self.room(model), now)

    def room(self, model: str) -> Room:
        """Where requests of a model can go."""
        fleet = self._scheduler.fleet(model)
        token_s = fleet.speeds.token_s[fleet.ready]
        return Room(len(token_s), float(np.median(token_s)) if len(token_s) else 0.0)

    def from_leaving(self, now: float) -> Iterator[tuple[Session, Flight]]:
        """Streams of draining workers that others can take at once, the oldest of the foreground first."""
        for session in self._workers:
            if session.draining:
                room = self.room(session.model)
                for flight in sorted(session.flights(), key=turn) if room.workers else ():
                    if self.migrations.left_s(session.model, room, now) <= 0:
                        break
                    yield session, flight

    def better_off(self, now: float) -> Iterator[tuple[Session, Flight]]:
        """Running streams that another worker would end sooner. Nothing while anybody waits for one."""
        for model in self._workers.models() if self._settings.moving else ():
            if self._scheduler.waiting(model).requests or self.migrations.passing or self.migrations:
                continue
            fleet = self._scheduler.fleet(model)
            seated = self._settled(slow_workers(fleet, self._moving), now)
            streams = [each.stream for each in seated.values()]
            arrivals = self._arrivals_a_s(model, now) if streams else 0.0
            for move in moves(streams, fleet, self._moving, arrivals):
                log.info("stream_moves", worker=move.worker, to=move.to, saved_s=round(move.saved_s, 1))
                yield seated[move.number].session, seated[move.number].flight

    def _arrivals_a_s(self, model: str, now: float) -> float:
        """Requests that workers of a model are given a second: own ones, and as many of other routers."""
        own = [flight for session in self._workers.of(model) for flight in session.flights()]
        all_routers = max(1.0, float(self._scheduler.fleet(model).sequences.sum()) / max(1, len(own)))
        return all_routers * arrivals_a_s(now - flight.submitted_s for flight in own)

    def _settled(self, keys: Iterable[str], now: float) -> dict[int, _Seated]:
        """Streams of these workers that have been there long enough."""
        found = {}
        for session in filter(None, map(self._workers.get, keys)):
            for flight in session.flights():
                if flight.proven and now - flight.submitted_s >= self._settings.moving_stay_s:
                    numerics = numerics_label(session.hello.digests.numerics)
                    order, made = flight.order, len(flight.ids)
                    left = expected_left(order.expected_output, made, order.max_tokens)
                    ticket = replace(flight.ticket(()), expected_output=left)
                    stream = Stream(ticket, session.worker_id, numerics)
                    found[flight.order.number] = _Seated(session, flight, stream)
        return found

    def close(self) -> None:
        """The router stops."""
        for parted in self._parted.values():
            parted.timer.cancel()
        self._parted.clear()

    def _return_s(self, session: Session) -> float:
        """How long its requests wait for its worker."""
        fleet = self._scheduler.fleet(session.model)
        lengths = [len(each.order.prompt_ids) + len(each.ids) for each in session.flights()]
        again_s = computed_again_s(lengths, fleet.speeds.models[:, fleet.ready])
        return max(self._settings.return_s, min(again_s, MOST_RETURN_S))

    def _expire(self, session: Session) -> None:
        parted = self._parted.pop(session.worker_id, None)
        if parted is not None:
            log.info("worker_not_back", worker=session.worker_id, held=len(session.flights()))
            parted.session.give_up()
            self._dispatch()


def computed_again_s(lengths: Sequence[int], models: Floats) -> float:
    """Seconds that workers with these step models [6, workers] share in computing sequences of these lengths.

    What comes on top of the steps that they do anyway; infinite where there is no worker.
    """
    _, token_s, pair_s, *_ = models
    if not len(token_s):
        return inf
    pairs = sum(length * length / 2 for length in lengths)
    return float(np.median(token_s) * sum(lengths) + np.median(pair_s) * pairs) / len(token_s)
