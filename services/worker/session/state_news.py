"""What a router is told of the engine: its last state, and what it computed for whom."""

from __future__ import annotations

from headrace.v1 import session_pb2

from services.worker.engine.report import StepReport
from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.events import Load, Served

STATE_BYTES = 512  # of numbers, load, credits, progress and step model, at most
NEAR = 16  # held blocks that differ by less than one part of so many are the same
NOTICEABLE = 0.05  # relative change of a step model's coefficient
TAGS_A_FRAME = 512
TAG_BYTES = 48  # of one tenant's totals, at most
SERVED_S = 0.1  # between two times at which a tenant's totals are told
QUIET_S = 0.1  # so long a state that is about the one before waits for other news to go with


class StateNews:
    """The engine's state: a newer one replaces one that was not sent.

    One that says about what the one before did goes with other news, or by itself after a while.
    """

    def __init__(self) -> None:
        self._report: StepReport | None = None
        self._at_s = 0.0
        self._told: tuple[Load, bool] | None = None
        self._told_s = 0.0
        self._presses = False
        self._step_model: StepModelState | None = None  # that was told

    @property
    def empty(self) -> bool:
        """Whether nothing has to be told now."""
        return not self._presses

    def put(self, report: StepReport, now: float, *, presses: bool = True) -> None:
        """The state of a report that came `now`; `presses`: it must be told at once, whatever it says."""
        self._report, self._at_s = report, now
        late = now - self._told_s >= QUIET_S
        self._presses = self._presses or presses or late or not _is_about(self._told, report)

    def fill(self, frame: session_pb2.WorkerFrame) -> None:
        """Tells it; the step model only when it has changed."""
        report, self._report = self._report, None
        if report is None:
            return
        self._told, self._told_s = (report.load, report.progress.has_work), self._at_s
        self._presses = False
        _fill_load(frame.load, report)
        _fill_progress(frame.progress, report, self._at_s)
        if self._step_model is None or _differs(self._step_model, report.step_model):
            self._step_model = report.step_model
            _fill_step_model(frame.step_model, report.step_model)


class ServedNews:
    """Totals by tenant since the session began; those that changed go with other news, every SERVED_S."""

    def __init__(self) -> None:
        self._totals: dict[bytes, list[int]] = {}
        self._changed: dict[bytes, None] = {}
        self._due: dict[bytes, None] = {}  # of those, whose turn it is
        self._next_s = 0.0
        self._missed = False

    @property
    def empty(self) -> bool:
        """Whether nothing has to be told now: all the rest waits for the next frame."""
        return not self._missed

    def missed(self) -> None:
        """A frame leaves: what had no room in it does not wait for other news."""
        self._missed = bool(self._due)

    def put(self, served: dict[bytes, Served], now: float) -> None:
        """What a report adds."""
        for tag, added in served.items():
            totals = self._totals.setdefault(tag, [0, 0])
            totals[0] += added.prompt_tokens
            totals[1] += added.output_tokens
            self._changed[tag] = None
        if now >= self._next_s:
            self._next_s = now + SERVED_S
            self._due.update(self._changed)
            self._changed.clear()

    def fill(self, frame: session_pb2.WorkerFrame) -> int:
        """Tells some. Returns how many bytes that is at most."""
        tags = list(self._due)[:TAGS_A_FRAME]
        for tag in tags:
            prompt_tokens, output_tokens = self._totals[tag]
            del self._due[tag]
            frame.tenant_service.add(tenant_tag=tag, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        return TAG_BYTES * len(tags)


def _fill_load(told: session_pb2.Load, report: StepReport) -> None:
    load, progress = report.load, report.progress
    told.running = load.running
    told.waiting = load.waiting
    told.waiting_tokens = load.waiting_uncached_tokens
    told.kv_blocks_free = load.blocks_free
    told.kv_blocks_cached = load.blocks_cached
    told.kv_blocks_held = load.blocks_held
    told.batch_size = progress.batch_size
    told.step_tokens = progress.step_tokens
    told.step_us = int(progress.step_s * 1e6)
    told.batch_sequences = load.batch_requests
    told.batch_waiting_tokens = load.batch_uncached_tokens


def _fill_progress(told: session_pb2.Progress, report: StepReport, now: float) -> None:
    """`now` is when the report came."""
    progress = report.progress
    told.steps, told.has_work = progress.finished_steps, progress.has_work
    if progress.has_work:
        told.since_last_step_us = int(max(0.0, now - progress.last_finished_s) * 1e6)


def _fill_step_model(told: session_pb2.StepModel, state: StepModelState) -> None:
    told.a, told.b, told.c, told.d, told.e = state.coefficients
    told.upper_quantile = state.quantile


def _is_about(told: tuple[Load, bool] | None, report: StepReport) -> bool:
    """Whether routers would decide alike: but for blocks, which running requests fill step by step."""
    if told is None:
        return False
    (load, had_work), now = told, report.load
    alike = load._replace(
        blocks_free=now.blocks_free, blocks_cached=now.blocks_cached, blocks_held=now.blocks_held
    )
    near = NEAR * abs(now.blocks_held - load.blocks_held) <= load.blocks_held
    return alike == now and near and had_work == report.progress.has_work


def _differs(old: StepModelState, new: StepModelState) -> bool:
    for before, after in zip(old.coefficients, new.coefficients, strict=True):
        if abs(after - before) > NOTICEABLE * abs(before) + 1e-14:
            return True
    return abs(new.quantile - old.quantile) > NOTICEABLE * old.quantile
