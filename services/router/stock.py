"""Takes stock of what waits and who is there, for the metrics."""

from __future__ import annotations

from headrace.v1 import admin_pb2

from services.router.metrics import CLASS_LABEL, RouterMetrics
from services.router.policy import LatencyClass, Scheduler
from services.router.sessions.workers import Workers


def take_stock(metrics: RouterMetrics, scheduler: Scheduler, workers: Workers, now: float) -> None:
    """Sets the gauges to how things stand now."""
    for each, count in scheduler.waiting_by_class().items():
        metrics.queue_depth.labels(CLASS_LABEL[each]).set(count)
    for model in workers.models():
        _of_model(metrics, scheduler, model)
    metrics.seats.set(sum(session.seated for session in workers))
    metrics.workers.clear()
    for session in workers:
        view = session.view(now)
        state = admin_pb2.WorkerState.Name(session.state(now)).removeprefix("WORKER_STATE_").lower()
        metrics.workers.labels(session.model, state).inc()
        metrics.credit.labels(session.worker_id).set(view.credit.sequences)


def _of_model(metrics: RouterMetrics, scheduler: Scheduler, model: str) -> None:
    index = scheduler.fleet(model).index
    metrics.index_blocks.labels(model).set(len(index))
    metrics.index_bytes.labels(model).set(index.nbytes)
    for each in LatencyClass:
        metrics.headroom.labels(model, CLASS_LABEL[each]).set(scheduler.headroom(model, each))
