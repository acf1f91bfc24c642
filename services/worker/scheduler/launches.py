"""Steps on their way to the runner, and how one follows another while the same sequences decode."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from services.worker.scheduler.budget import StepModel
from services.worker.scheduler.draft import Draft, build_step
from services.worker.scheduler.residents import Residents
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.steady import LEAST, SteadyDecodes
from services.worker.scheduler.step import Step, StepCost


class Launched(NamedTuple):
    """A step on its way, and whose rows it has."""

    number: int
    sequences: list[Sequence]
    cost: StepCost


class Launches:
    """Makes steps of drafts, and keeps them in order until they are settled.

    Args:
        columns: whether rows that stay the same may become `SteadyDecodes`.
    """

    def __init__(self, residents: Residents, model: StepModel, *, columns: bool) -> None:
        self.last_step = 0
        self._residents = residents
        self._model = model
        self._columns = columns
        self._under_way: deque[Launched] = deque()
        self._last_rows: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._under_way)

    def launch(self, draft: Draft, now: float) -> Step:
        """The step of a draft; its tokens count as computed."""
        self.last_step += 1
        step = build_step(self.last_step, draft, self._residents)
        self._residents.launched_decodes(draft.decodes, self.last_step, now)
        for sequence, take in draft.chunks.items():
            self._residents.launched_chunk(sequence, take, self.last_step, now)
        rows = [*draft.decodes, *draft.chunks]
        self._under_way.append(Launched(self.last_step, rows, step.cost))
        if self._is_steady(draft, rows):
            self._residents.steady = SteadyDecodes(rows, step, self._residents)
        self._last_rows = rows
        return step

    def launch_steady(self, steady: SteadyDecodes, now: float) -> Step:
        """The next step of rows that stay as they are."""
        step = steady.launch(now, unseen=bool(self._under_way))
        self.last_step = step.number
        self._under_way.append(Launched(step.number, steady.sequences, step.cost))
        return step

    def settle(self, step: Step) -> list[Sequence]:
        """The oldest one has ended; whose rows it had."""
        number, sequences, _ = self._under_way.popleft()
        assert number == step.number, "steps are committed in the order of their launch"
        return sequences

    def next_ends_in_s(self, seconds: float) -> float:
        """How long it will be until the next step ends, where the last took `seconds`."""
        if not self._under_way:
            return seconds
        return max(seconds, self._model.predict(self._under_way[0].cost))

    def _is_steady(self, draft: Draft, rows: list[Sequence]) -> bool:
        """Whether these decode alone, as in the step before."""
        return (
            self._columns
            and len(rows) >= LEAST
            and not draft.chunks
            and rows == self._last_rows
            and len(rows) == len(self._residents)
            and not self._residents.constrained
            and not any([each.background for each in rows])
        )
