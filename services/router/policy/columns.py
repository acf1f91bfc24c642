"""The values of many workers as arrays, one column a worker.

A report or a booking changes one column and what follows from it, in constant time. Only what depends on the
whole pool, its speeds, is worked out again when it is next asked.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property

import numpy as np

from services.router.policy.kinds import Kind, Limits, amount
from services.router.policy.speed import Floats, Mask, Speeds, believed
from services.router.policy.worker import BLOCK_TOKENS, WorkerView


def some(mask: Mask) -> bool:
    """Whether it is so of any worker; five times as fast as `any` where they are few."""
    return bool(np.count_nonzero(mask))


class _Row(IntEnum):
    FREE_BLOCKS = 0
    CONTEXT = 1
    MAX_SEQUENCES = 2
    MAX_TOKENS = 3
    KV_TOKENS = 4


class Columns:
    """Arrays of one length, not to be written to from outside; a column without a worker is all 0."""

    def __init__(self, width: int) -> None:
        self._kinds = (Kind(False, width), Kind(True, width))
        self.changes = 0
        """Rises with whatever changes of the workers: what was worked out before holds while it does not."""
        self._bind(np.zeros((len(_Row), width)), np.full((6, width), np.nan), np.zeros((2, width), np.bool_))

    @property
    def width(self) -> int:
        """Length of every array."""
        return len(self.there)

    @property
    def sequences(self) -> Floats:
        """That run or wait in each worker."""
        return self._kinds[False].sequences

    @property
    def waiting_tokens(self) -> Floats:
        """Prompt tokens still to compute in each worker."""
        return self._kinds[False].waiting_tokens

    @property
    def open(self) -> Mask:
        """Workers that are ready and have credit for something."""
        return self._kinds[False].open

    @property
    def foreground_open(self) -> Mask:
        """The same for requests of other classes than BATCH."""
        return self._kinds[True].open

    @cached_property
    def speeds(self) -> Speeds:
        """What is believed of the workers' speeds."""
        speeds = believed(self._models)
        for each in self._kinds:
            each.weigh(speeds, self.ready)
        return speeds

    def busy(self, foreground: bool = False) -> Kind:
        """How busy workers are for a request of another class than BATCH, or of BATCH."""
        assert self.speeds
        return self._kinds[foreground]

    @cached_property
    def least(self) -> tuple[float, float]:
        """Least KV tokens and least longest sequence among the workers that are there."""
        if not some(self.there):
            return 0.0, 0.0
        return float(self.kv_tokens[self.there].min()), float(self.max_tokens[self.there].min())

    def limit(self, limits: Limits) -> None:
        """From now on these hold, which is worked out when they change."""
        if limits == self._kinds[0].limits:
            return
        usable = self.max_sequences - np.floor(self.max_sequences * limits.reserve)
        for each in self._kinds:
            each.limits = limits
            np.copyto(each.unreserved_room, np.where(each.sequences < usable, each.room, -np.inf))
        self._forget("speeds")

    def _set(self, position: int, view: WorkerView) -> None:
        """Takes over a worker's values."""
        self.free_blocks[position] = amount(view.free_blocks)
        self.running_context[position] = amount(view.running_context)
        self.max_sequences[position] = amount(view.max_sequences)
        self.max_tokens[position] = amount(view.max_tokens)
        self.kv_tokens[position] = amount(view.total_blocks) * BLOCK_TOKENS
        self.there[position] = True
        self.ready[position] = view.ready
        self._booked(position, view)

    def _set_model(self, position: int, view: WorkerView) -> None:
        self._models[:, position] = np.nan if view.step_model is None else view.step_model
        self._forget("speeds")
        self.changes += 1

    def _booked(self, position: int, view: WorkerView) -> None:
        """Takes over what a booking changed."""
        batch, foreground = self._kinds
        batch.take(position, view)
        if view.uniform:
            foreground.copy(position, batch)
        else:
            foreground.take(position, view)
        self.changes += 1

    def _unset(self, position: int) -> None:
        self._values[:, position] = 0
        self._flags[:, position] = False
        self._models[:, position] = np.nan
        for each in self._kinds:
            each.drop(position)
        self._forget("speeds", "least")
        self.changes += 1

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _widen(self, width: int) -> None:
        more = width - self.width
        for each in self._kinds:
            each.widen(more)
        self._bind(
            np.pad(self._values, ((0, 0), (0, more))),
            np.pad(self._models, ((0, 0), (0, more)), constant_values=np.nan),
            np.pad(self._flags, ((0, 0), (0, more))),
        )

    def _bind(self, values: Floats, models: Floats, flags: Mask) -> None:
        """Rows by name; they are views of one array."""
        self._forget("speeds", "least")
        self._values, self._models, self._flags = values, models, flags
        self.there: Mask = flags[0]
        self.ready: Mask = flags[1]
        """Takes new requests, with or without credit at this moment."""
        self.free_blocks: Floats = values[_Row.FREE_BLOCKS]
        self.running_context: Floats = values[_Row.CONTEXT]
        self.max_sequences: Floats = values[_Row.MAX_SEQUENCES]
        self.max_tokens: Floats = values[_Row.MAX_TOKENS]
        self.kv_tokens: Floats = values[_Row.KV_TOKENS]
