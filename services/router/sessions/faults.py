"""Nonsense that one worker sent: counted, reported once a kind, and told when it is too much."""

from __future__ import annotations

from services.common import logs
from services.common.conduct import Conduct
from services.router.metrics import BadFrame, RouterMetrics

log = logs.get(__name__)


class Faults:
    """Of one session."""

    def __init__(self, worker_id: str, metrics: RouterMetrics, now: float) -> None:
        self._worker_id = worker_id
        self._metrics = metrics
        self._conduct = Conduct(now)
        self._reported: set[str] = set()

    def note(self, kind: BadFrame) -> None:
        """One that is not held against the worker, or ends its session anyhow."""
        self._metrics.bad_frames.labels(kind).inc()
        if kind not in self._reported:
            self._reported.add(kind)
            log.warning("bad_frame", worker=self._worker_id, kind=kind)

    def too_many(self, kind: BadFrame, now: float) -> bool:
        """Notes one; whether it goes on for too long."""
        self.note(kind)
        return self._conduct.fault(now)
