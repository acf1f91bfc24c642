"""How full the scheduler is, and what could be started beyond all that is there."""

from __future__ import annotations

from collections.abc import Mapping

from services.worker.scheduler.blocks import BlockPool
from services.worker.scheduler.budget import StepModel
from services.worker.scheduler.events import Credits, Load, Room
from services.worker.scheduler.planner import Planner
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import LatencyClass
from services.worker.scheduler.residents import Residents
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.waiting import WaitingLine

_NOTHING = Room(0, 0, 0)


class Occupancy:
    """Reads off what others keep; it only counts the requests of class BATCH itself.

    Args:
        unfinished: requests by handle, as the scheduler keeps them.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        model: StepModel,
        pool: BlockPool,
        residents: Residents,
        waiting: WaitingLine,
        planner: Planner,
        unfinished: Mapping[int, Sequence],
    ) -> None:
        self._settings = settings
        self._model = model
        self._pool = pool
        self._residents = residents
        self._waiting = waiting
        self._planner = planner
        self._unfinished = unfinished
        self._batch = 0

    def came(self, sequence: Sequence) -> None:
        """It is unfinished from now on."""
        self._batch += sequence.request.latency_class is LatencyClass.BATCH

    def left(self, sequence: Sequence) -> None:
        """It is unfinished no more."""
        self._batch -= sequence.request.latency_class is LatencyClass.BATCH

    def load(self) -> Load:
        """How full it is."""
        running, waiting = len(self._residents), len(self._waiting)
        batch = self._held_by_batch()
        tokens = self._uncached_tokens()
        return Load(running, waiting, tokens, *self._pool.statistics(), batch.slots, batch.prefill_tokens)

    def credits(self) -> Credits:
        """What could be started beyond all that is there."""
        window_s = self._settings.credit_steps * self._planner.prompt_room_s
        window = self._model.tokens_within(window_s, 0)
        lengthy = self._lengthy_tokens()
        tokens = window - (self._uncached_tokens() - lengthy) - min(lengthy, window // 2)
        slots = self._residents.free_slots - len(self._waiting)
        taken = self._residents.promised + self._residents.blocks_for(self._waiting.uncached_tokens)
        blocks = self._pool.available - taken
        held = self._held_by_batch()
        return Credits(
            prefill_tokens=max(0, tokens),
            slots=max(0, slots),
            blocks=max(0, blocks),
            foreground=Room(
                prefill_tokens=max(0, tokens + held.prefill_tokens),
                slots=max(0, slots + held.slots),
                blocks=max(0, blocks + held.blocks),
            ),
            waiting_by_session=dict(self._waiting.by_session),
        )

    def _held_by_batch(self) -> Room:
        """What batch work has, waiting or resident, that gives way to foreground requests."""
        if not self._batch:
            return _NOTHING
        behind = [each for each in self._unfinished.values() if self._gives_way(each)]
        waiting = sum([each.backlog for each in behind if each.slot is None])
        prefilling = sum([each.missing for each in behind if each.handle in self._residents.prefilling])
        blocks = sum([len(each.blocks) + each.promised for each in behind])
        blocks += self._residents.blocks_for(waiting)
        return Room(waiting + prefilling, len(behind), blocks)

    def _gives_way(self, sequence: Sequence) -> bool:
        spared = sequence.slot is not None and sequence.preemptions >= self._settings.max_preemptions
        return sequence.background and not spared

    def _uncached_tokens(self) -> int:
        prefilling = self._residents.prefilling.values()
        return self._waiting.uncached_tokens + sum([sequence.missing for sequence in prefilling])

    def _lengthy_tokens(self) -> int:
        """Of these, tokens of prompts that have half of a step's room at most while others wait."""
        prefilling = self._residents.prefilling.values()
        return self._waiting.lengthy_tokens + sum([each.missing for each in prefilling if each.lengthy])
