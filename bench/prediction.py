"""How well the step model knows a step before it has run, read from what the engine publishes after each.

The published error is a running mean, e' = e + w (ape - e) with w = max(ERROR_WEIGHT, 1 / steps): from two
that follow each other comes the error of the one step between them, whose prediction was made before it.
"""

from __future__ import annotations

from services.worker.engine.report import StepReport
from services.worker.scheduler.budget import ERROR_WEIGHT, StepModelState


class Errors:
    """Relative errors of single steps; watches reports from its making on."""

    def __init__(self) -> None:
        self.values: list[float] = []  # |measured - predicted| / measured
        self._last: StepModelState | None = None

    def watch(self, report: StepReport) -> None:
        """Note the step that this report follows, if it follows one."""
        self.note(report.step_model)

    def note(self, state: StepModelState) -> None:
        """The model's state after one step more; states that skip a step tell nothing of single ones."""
        if self._last is not None and state.observed_steps == self._last.observed_steps + 1:
            self.values.append(error_between(self._last, state))
        self._last = state

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


def error_between(before: StepModelState, after: StepModelState) -> float:
    """Of the one step that lies between two states."""
    weight = max(ERROR_WEIGHT, 1.0 / after.observed_steps)
    return before.error + (after.error - before.error) / weight
