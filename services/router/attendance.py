"""Which workers are there, what they keep and what they have done: news of sessions, for the scheduler.

A worker whose session broke is away: it gets nothing, but what it keeps stays known while it may come back.
The same incarnation goes on where it was, and only what it did meanwhile is asked for; another begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from headrace.v1 import session_pb2

from services.common import errors, logs
from services.router.metrics import RouterMetrics
from services.router.policy import Scheduler
from services.router.policy.kv_feed import KvFeed
from services.router.sessions.resume import same_process
from services.router.sessions.served import TenantBook
from services.router.sessions.session import Session
from services.router.sessions.workers import Workers

_FASTER = 4.0
"""Than its believed speed: what a worker may claim to have done."""
log = logs.get(__name__)


class _Away(NamedTuple):
    session: Session
    until_s: float


class Attendance:
    """The workers of this router process, as the scheduler is to know them."""

    def __init__(
        self, scheduler: Scheduler, workers: Workers, metrics: RouterMetrics, grace_s: float
    ) -> None:
        self.tenants = TenantBook()
        self._scheduler = scheduler
        self._workers = workers
        self._metrics = metrics
        self._grace_s = grace_s
        self._away: dict[str, _Away] = {}

    def join(self, session: Session, now: float) -> Session | None:
        """A worker is there; returns its earlier session, which is over."""
        earlier = self._workers.add(session)
        away = self._away.pop(session.worker_id, None)
        before = earlier or (away.session if away else None)
        if before is not None and not same_process(before, session):
            self._scheduler.worker_gone(session.worker_id)
            before = None
        self._scheduler.worker_changed(session.view(now))
        session.feed = before.feed if before is not None else self._feed(session)
        if earlier is not None:
            earlier.feed = None
            session.displaced = (earlier.displaced | {earlier.incarnation}) - {session.incarnation}
            earlier.close(errors.Aborted("another session of this worker began", reason="REPLACED"))
        log.info("worker_joined", worker=session.worker_id, model=session.model, engine=session.hello.engine)
        return earlier

    def part(self, session: Session, now: float) -> None:
        """A session is over."""
        _tell_of(session)
        if not self._workers.remove(session):
            return
        self._metrics.forget(session.worker_id)
        if session.draining or not self._grace_s:
            self._scheduler.worker_gone(session.worker_id)
            return
        self._scheduler.worker_changed(replace(session.view(now), ready=False))
        self._away[session.worker_id] = _Away(session, now + self._grace_s)

    def expire(self, now: float) -> None:
        """Forgets workers that did not come back, and blocks that were expected in vain."""
        for key in [key for key, away in self._away.items() if now >= away.until_s]:
            del self._away[key]
            self._scheduler.worker_gone(key)
        for model in self._workers.models():
            self._scheduler.fleet(model).index.expire(now)

    def served(self, session: Session, told: Iterable[session_pb2.TenantService], now: float) -> None:
        """Takes what a worker has done for tenants, as far as it can be true."""
        meter = session.meter
        faults = meter.faults
        for work in meter.differences(told, self._most_per_s(session), now):
            who = self.tenants.read(work.tag)
            if who is not None:
                self._scheduler.served(session.model, *who, work.prompt_tokens, work.output_tokens)
        if meter.faults > faults:
            session.misbehaved("served")

    def _feed(self, session: Session) -> KvFeed | None:
        if session.chain_kind is None:
            return None
        index = self._scheduler.fleet(session.model).index
        return KvFeed(session.worker_id, session.hello.kv_spec.blocks, index)

    def _most_per_s(self, session: Session) -> float:
        fleet = self._scheduler.fleet(session.model)
        position = fleet.index.positions.get(session.worker_id)
        return 0.0 if position is None else _FASTER / float(fleet.speeds.token_s[position])


def _tell_of(gone: Session) -> None:
    """Who was sent away is a fault somewhere; who drained, or hung up as its router stops, is none."""
    tell, why = log.info, "drained" if gone.draining else "hung up"
    if gone.close_error is not None:
        tell, why = log.warning, gone.close_error.reason
    tell("worker_left", worker=gone.worker_id, held=len(gone.flights()), why=why)
