"""What a worker counts."""

from __future__ import annotations

from headrace.v1 import session_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.worker.engine.report import StepReport, Work
from services.worker.engine_state import EngineState
from services.worker.gpu.collector import FRESH_S, GpuCollector

_STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
_COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKEN_BUCKETS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)


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
        self.returned = Counter(
            "headrace_worker_returned", "Requests given back, by reason", ["reason"], registry=registry
        )
        self.ends = Counter(
            "headrace_worker_ends", "Requests that ended, by reason", ["reason"], registry=registry
        )
        self.abandoned = Counter(
            "headrace_worker_abandoned", "Requests whose router did not come back for them", registry=registry
        )
        self.adopted = Counter(
            "headrace_worker_adopted", "Requests that another router took over", registry=registry
        )
        self.jobs = Gauge(
            "headrace_worker_jobs", "Requests that the engine has not yet ended", registry=registry
        )
        self.tokens = Counter(
            "headrace_worker_tokens",
            "Tokens: prompt (computed), cached (found instead), output",
            ["kind"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "headrace_worker_batch_size", "Sequences in a step", buckets=_COUNT_BUCKETS, registry=registry
        )
        self.step_tokens = Histogram(
            "headrace_worker_step_tokens", "Tokens in a step", buckets=_TOKEN_BUCKETS, registry=registry
        )
        self.step_seconds = Histogram(
            "headrace_worker_step_seconds", "Duration of a step", buckets=_STEP_BUCKETS_S, registry=registry
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
        self._prompt_tokens, self._output_tokens = map(self.tokens.labels, ("prompt", "output"))
        self._steps = 0

    def report(self, report: StepReport) -> None:
        """Takes the engine's state."""
        self._state.last = report
        progress = report.progress
        self.work = progress.work
        for served in report.served.values():
            self._prompt_tokens.inc(served.prompt_tokens)
            self._output_tokens.inc(served.output_tokens)
        if progress.finished_steps > self._steps:
            self._steps = progress.finished_steps
            self.batch_size.observe(progress.batch_size)
            self.step_tokens.observe(progress.step_tokens)
            self.step_seconds.observe(progress.step_s)

    def ended(self, end: session_pb2.SequenceEnd) -> None:
        """A request ended."""
        self.ends.labels(session_pb2.EndReason.Name(end.reason).removeprefix("END_REASON_").lower()).inc()
        self.tokens.labels("cached").inc(end.usage.cached_tokens)
