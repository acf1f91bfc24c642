"""The same sequences step after step, with one more id each: told as the columns that the engine sends.

Most steps are so. What a steady batch has heard is not in its jobs before `dissolve`, which the desk calls
ahead of whoever looks into one: looking into each at every step would cost as much as writing the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from services.worker.scheduler.events import Outputs
from services.worker.scheduler.step import Int32, Int64
from services.worker.session.home import Columns, Home
from services.worker.session.job import Job

LEAST = 16  # sequences: looking into so few of them costs less
MOST = 1024  # of one session: they fit a frame
MOST_STEPS = 64  # that are not in the jobs


class SteadyBatch:
    """Jobs that get one id each, in the same order, with every step.

    Args:
        handles: of the jobs, as the engine lists them.
        following: index of the next id of each.
    """

    def __init__(self, handles: Int64, following: list[int], parts: Sequence[_Part]) -> None:
        self._handles = handles.tobytes()
        self._following = following
        self._parts = parts
        self._heard: list[Int32] = []  # ids of the steps that are not in the jobs; all but the last are told

    @classmethod
    def of(cls, handles: Int64, jobs: Mapping[int, Job]) -> Self | None:
        """The batch of these jobs; None when they are not so that their next ids are columns."""
        parts: dict[int, _Part] = {}
        following = []
        for row, handle in enumerate(handles.tolist()):
            job = jobs.get(handle)
            if job is None or (home := job.home) is None or not (home.columns and job.is_plain):
                return None
            parts.setdefault(home.number, _Part(home)).add(row, job)
            following.append(job.made)
        if any(part.jobs > MOST for part in parts.values()):
            return None
        return cls(handles, following, list(parts.values()))

    def hear(self, outputs: Outputs) -> bool:
        """Takes a step and tells it; False, and nothing done, when it is another one or has to wait."""
        indices = outputs.indices.tolist()
        if not (self._is_next(outputs, indices) and all(part.told for part in self._parts)):
            return False
        if len(self._heard) == MOST_STEPS:
            self._write_down()
        self._heard.append(outputs.tokens)
        self._following = [index + 1 for index in indices]
        ids = outputs.tokens.tolist()
        for part in self._parts:
            part.tell(indices, ids)
        return True

    def dissolve(self) -> None:
        """Puts what was heard into the jobs, for good; what is not told yet waits in their lines."""
        self._write_down()
        for part in self._parts:
            part.take_back()

    def _is_next(self, outputs: Outputs, indices: list[int]) -> bool:
        same = outputs.handles.tobytes() == self._handles
        return same and indices == self._following and not outputs.logprobs

    def _write_down(self) -> None:
        if self._heard:
            table = np.stack(self._heard, axis=1)  # [jobs, steps]
            self._heard.clear()
            for part in self._parts:
                part.write_down(table)


class _Part:
    """The jobs of one session."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._rows: list[int] = []  # of the step
        self._jobs: list[Job] = []
        self._slots: list[int] = []
        self._attempts: list[int] = []
        self._last: Columns | None = None

    @property
    def jobs(self) -> int:
        """How many."""
        return len(self._jobs)

    @property
    def told(self) -> bool:
        """Whether the session's writer took what it was told last."""
        return self._last is None or self._last.told

    def add(self, row: int, job: Job) -> None:
        """One more."""
        self._rows.append(row)
        self._jobs.append(job)
        self._slots.append(job.slot)
        self._attempts.append(job.attempt)

    def tell(self, indices: list[int], ids: list[int]) -> None:
        """Hands the session its columns of a step."""
        if len(self._rows) < len(ids):
            indices, ids = [indices[row] for row in self._rows], [ids[row] for row in self._rows]
        self._last = Columns(self._slots, self._attempts, indices, ids)
        self._home.tell(self._last)

    def write_down(self, table: Int32) -> None:
        """Ids by row of the step."""
        for row, job in zip(self._rows, self._jobs, strict=True):
            job.extend(table[row].tobytes())

    def take_back(self) -> None:
        """What was not told waits with each job."""
        untold = not self.told
        if untold:
            self._home.take_back()
        for job in self._jobs:
            job.sent = job.made - int(untold)
            if untold:
                self._home.line[job.handle] = job
