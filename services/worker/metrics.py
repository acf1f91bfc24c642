"""What a worker counts."""

from __future__ import annotations

from typing import Literal, get_args

from headrace.v1 import session_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.common.metrics import from_zero
from services.common.tallies import Tallies
from services.worker.engine.report import Progress, StepReport, Work
from services.worker.engine_state import EngineState
from services.worker.gpu.collector import FRESH_S, GpuCollector

_REASONS = {
    number: name.removeprefix("END_REASON_").lower() for name, number in session_pb2.EndReason.items()
}


BadFrame = Literal[
    "acknowledged_frame",
    "bad_resume",
    "claims",
    "duplicate_frame",
    "duplicate_slot",
    "frame_gap",
    "incomplete_prompt",
    "malformed_piece",
    "malformed_submit",
    "stray_piece",
    "unknown_slot",
]
"""What a router can send that makes no sense."""


class WorkerMetrics:
    """Metrics of one worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sessions = Gauge("headrace_worker_sessions", "Open sessions with routers", registry=registry)
        self.session_failures = Counter(
            "headrace_worker_session_failures",
            "Sessions that ended or never began, by kind",
            ["kind"],
            registry=registry,
        )
        self.bad_frames = Counter(
            "headrace_worker_bad_frames", "What routers sent and made no sense", ["kind"], registry=registry
        )
        from_zero(self.bad_frames, get_args(BadFrame))
        self.returned = Counter(
            "headrace_worker_returned", "Requests given back, by reason", ["reason"], registry=registry
        )
        self.ends = Tallies("headrace_worker_ends", "Requests that ended, by reason", ["reason"], registry)
        self.abandoned = Counter(
            "headrace_worker_abandoned", "Requests whose router did not come back for them", registry=registry
        )
        self.adopted = Counter(
            "headrace_worker_adopted", "Requests that another router took over", registry=registry
        )
        self.jobs = Gauge(
            "headrace_worker_jobs", "Requests that the engine has not yet ended", registry=registry
        )
        self.telemetry_failures = Counter(
            "headrace_worker_gpu_telemetry_failures",
            "Readings of the GPU that failed, by kind (error, hung)",
            ["kind"],
            registry=registry,
        )
        self.gpu = GpuCollector(FRESH_S)
        registry.register(self.gpu)
        self.work: Work | None = None
        self._state = EngineState()
        registry.register(self._state)

    def report(self, report: StepReport) -> None:
        """Takes the engine's state."""
        self.work = report.progress.work
        self._state.report(report)

    def stepped(self, progress: Progress) -> None:
        """Takes a step whose report says nothing else."""
        self._state.stepped(progress)

    def ended(self, end: session_pb2.SequenceEnd) -> None:
        """A request ended."""
        self.ends.labels(_REASONS[end.reason]).inc()
        self._state.cached_tokens += end.usage.cached_tokens
