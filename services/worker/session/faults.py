"""What a router sends and makes no sense: counted, logged once of a kind, forgiven a little."""

from __future__ import annotations

from services.common import logs
from services.common.conduct import Conduct
from services.worker.metrics import BadFrame, WorkerMetrics

log = logs.get(__name__)


class Misbehaved(Exception):
    """The router goes on sending what makes no sense."""


class Faults:
    """Of one session."""

    def __init__(self, router_id: str, metrics: WorkerMetrics, now: float) -> None:
        self._router_id = router_id
        self._metrics = metrics
        self._conduct = Conduct(now)
        self._logged: set[str] = set()
        self._given_up: Misbehaved | None = None

    def add(self, kind: BadFrame, now: float) -> None:
        """One more. Raises Misbehaved when it was one too many."""
        self._metrics.bad_frames.labels(kind).inc()
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("bad_frame", router=self._router_id, kind=kind)
        if self._conduct.fault(now):
            raise Misbehaved(kind)

    def note(self, kind: BadFrame, now: float) -> None:
        """As `add`, where nobody hears: `check` raises it."""
        try:
            self.add(kind, now)
        except Misbehaved as error:
            self._given_up = error

    def check(self) -> None:
        """Raises Misbehaved when what was noted was one too many."""
        if self._given_up is not None:
            raise self._given_up
