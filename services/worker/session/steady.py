"""The same sequences report after report, with as many ids each: told as the columns that the engine sends.

Most reports are so. What a steady batch has heard is not in its jobs before `dissolve`, which the desk calls
ahead of whoever looks into one: looking into each at every step would cost as much as writing the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from services.worker.scheduler.events import Outputs
from services.worker.scheduler.step import Int32, Int64
from services.worker.session.columns import MOST_BYTES, Columns, columns_bytes
from services.worker.session.home import Home
from services.worker.session.job import Job

LEAST = 16  # sequences: looking into so few of them costs less
MOST_STEPS = 64  # that are not in the jobs


class SteadyBatch:
    """Jobs that get ids in the same order with every report, each one of every step that it tells of.

    Args:
        handles: of the jobs, as the engine lists them.
        following: index of the next id of each.
    """

    def __init__(self, handles: Int64, following: Int32, parts: Sequence[_Part]) -> None:
        self._handles = handles
        self._following = following
        self._parts = parts
        self._heard: list[Int32] = []  # [steps, jobs] ids that are not in the jobs; all but the last are told

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
        return cls(handles, np.array(following, np.int32), list(parts.values()))

    def hear(self, outputs: Outputs) -> bool:
        """Takes the next steps and tells them; False, and nothing done, when they are others or must wait."""
        steps = self._following_steps(outputs)
        if not (steps and all(part.can_tell(steps) for part in self._parts)):
            return False
        if sum(map(len, self._heard)) + steps > MOST_STEPS:
            self._write_down()
        table = outputs.tokens.reshape(steps, -1)
        self._heard.append(table)
        indices = self._following.tolist()
        self._following = self._following + np.int32(steps)
        for part in self._parts:
            part.tell(indices, table)
        return True

    def dissolve(self) -> None:
        """Puts what was heard into the jobs, for good; what is not told yet waits in their lines."""
        self._write_down()
        for part in self._parts:
            part.take_back()

    def _following_steps(self, outputs: Outputs) -> int:
        """How many steps of all these jobs they are; 0: they are not that."""
        steps, rest = divmod(len(outputs), len(self._handles))
        if rest or outputs.logprobs:
            return 0
        handles, indices = outputs.handles.reshape(steps, -1), outputs.indices.reshape(steps, -1)
        expected = self._following + np.arange(steps, dtype=np.int32)[:, None]
        same = bool((handles == self._handles).all()) and bool((indices == expected).all())
        return steps if same else 0

    def _write_down(self) -> None:
        if self._heard:
            table = np.concatenate(self._heard).T.copy()  # [jobs, steps]
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
        self._last_steps = 0  # that it tells of

    @property
    def jobs(self) -> int:
        """How many."""
        return len(self._jobs)

    def can_tell(self, steps: int) -> bool:
        """Whether it can tell so many: the session's writer took what it was told last, and can have them."""
        if self._last is not None and not self._last.told:
            return False
        allowed = steps == 1 or self._home.counts
        return allowed and columns_bytes(self.jobs, steps * self.jobs) <= MOST_BYTES

    def add(self, row: int, job: Job) -> None:
        """One more."""
        self._rows.append(row)
        self._jobs.append(job)
        self._slots.append(job.slot)
        self._attempts.append(job.attempt)

    def tell(self, indices: list[int], table: Int32) -> None:
        """Hands the session its columns of [steps, jobs] ids."""
        self._last_steps = steps = len(table)
        if self.jobs < len(indices):
            indices, table = [indices[row] for row in self._rows], table[:, self._rows]
        counts = [steps] * self.jobs if steps > 1 else []
        self._last = Columns(self._slots, self._attempts, indices, table.T.ravel().tolist(), counts)
        self._home.tell(self._last)

    def write_down(self, table: Int32) -> None:
        """Ids by row of the step."""
        for row, job in zip(self._rows, self._jobs, strict=True):
            job.extend(table[row].tobytes())

    def take_back(self) -> None:
        """What was not told waits with each job."""
        untold = self._last_steps if self._last is not None and not self._last.told else 0
        if untold:
            self._home.take_back()
        for job in self._jobs:
            job.sent = job.made - untold
            if untold:
                self._home.line[job.handle] = job
