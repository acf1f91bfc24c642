"""The engine's outputs, taken into the jobs that they are of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from services.worker.scheduler.events import NO_OUTPUTS, Outputs
from services.worker.scheduler.step import Int64
from services.worker.session.job import Job
from services.worker.session.steady import LEAST, SteadyBatch


class Hearing:
    """What steps brought is in the jobs or in a steady batch: `dissolve` it ahead of looking into a job.

    Args:
        jobs: by handle; others' outputs are nobody's.
    """

    def __init__(self, jobs: Mapping[int, Job]) -> None:
        self._jobs = jobs
        self._steady: SteadyBatch | None = None
        self._last_handles = NO_OUTPUTS.handles

    def hear(self, outputs: Outputs) -> None:
        """Takes the outputs of the next report."""
        if len(outputs) and not self._hear_steady(outputs):
            self.dissolve()
            self._hear_each(outputs)

    def dissolve(self) -> None:
        """All that was heard is in the jobs when this returns."""
        if self._steady is not None:
            self._steady.dissolve()
            self._steady = None

    def _hear_steady(self, outputs: Outputs) -> bool:
        """Whether a steady batch took them: that of the steps before, or one that begins."""
        if self._steady is None and len(outputs) >= LEAST:
            before, self._last_handles = self._last_handles, of_one_step(outputs.handles)
            if np.array_equal(before, self._last_handles):
                self._steady = SteadyBatch.of(self._last_handles, self._jobs)
        return self._steady is not None and self._steady.hear(outputs)

    def _hear_each(self, outputs: Outputs) -> None:
        jobs = self._jobs
        for handle, index, token in outputs.plain():
            if (job := jobs.get(handle)) is not None:
                job.append(index, token)
                if job.home is not None:
                    job.home.line[handle] = job
        for handle, logprobs in outputs.described():
            if (job := jobs.get(handle)) is not None:
                job.describe(logprobs)


def of_one_step(handles: Int64) -> Int64:
    """The handles of a report's first step: those before the first comes again."""
    again = np.flatnonzero(handles[1:] == handles[:1])
    return handles[: again[0] + 1] if len(again) else handles
