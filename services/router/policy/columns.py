"""The values of many workers as arrays, one column a worker.

A report or a booking changes one column and what follows from it, in constant time. Only what depends on the
whole pool, its speeds, is worked out again when it is next asked.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property
from math import floor
from typing import NamedTuple

import numpy as np

from services.router.policy.speed import Floats, Mask, Speeds, believed
from services.router.policy.worker import BLOCK_TOKENS, WorkerView

_MOST = float(1 << 40)


class _Row(IntEnum):
    CREDIT_TOKENS = 0
    CREDIT_SEQUENCES = 1
    CREDIT_BLOCKS = 2
    SEQUENCES = 3
    WAITING_TOKENS = 4
    FREE_BLOCKS = 5
    CONTEXT = 6
    MAX_SEQUENCES = 7
    MAX_TOKENS = 8
    KV_TOKENS = 9
    FOREGROUND_BLOCKS = 10
    FOREGROUND_SEQUENCES = 11
    FOREGROUND_TOKENS = 12
    LOAD = 13
    QUEUE_S = 14
    FOREGROUND_LOAD = 15
    FOREGROUND_QUEUE_S = 16


class Business(NamedTuple):
    """How busy workers are, as a kind of work sees it: batch work gives way to the foreground. [positions]"""

    sequences: Floats
    waiting_tokens: Floats
    load: Floats
    """Sequences, as many as they would be on a worker of the pool's median speed."""
    queue_s: Floats
    """Seconds of prefill that wait there."""


class Columns:
    """Arrays of one length, not to be written to from outside; a column without a worker is all 0."""

    def __init__(self, width: int) -> None:
        self._reserve = 0.0
        self._bind(np.zeros((len(_Row), width)), np.full((6, width), np.nan), np.zeros((7, width), np.bool_))

    @property
    def width(self) -> int:
        """Length of every array."""
        return len(self.there)

    @cached_property
    def speeds(self) -> Speeds:
        """What is believed of the workers' speeds."""
        speeds = believed(self._models)
        for each in self._busy:
            np.multiply(each.sequences, speeds.slowness, each.load)
            np.multiply(each.waiting_tokens, speeds.token_s, each.queue_s)
        return speeds

    def busy(self, foreground: bool = False) -> Business:
        """How busy workers are for a request of another class than BATCH, or of BATCH."""
        assert self.speeds
        return self._busy[foreground]

    @cached_property
    def least(self) -> tuple[float, float]:
        """Least KV tokens and least longest sequence among the workers that are there."""
        if not self.there.any():
            return 0.0, 0.0
        return float(self.kv_tokens[self.there].min()), float(self.max_tokens[self.there].min())

    def unreserved(self, reserve: float, foreground: bool = False) -> Mask:
        """Workers with sequence slots left beyond this share of all."""
        if reserve != self._reserve:
            self._reserve = reserve
            usable = self.max_sequences - np.floor(self.max_sequences * reserve)
            for each, unreserved in zip(self._busy, self._unreserved, strict=True):
                np.less(each.sequences, usable, unreserved)
        found: Mask = self._unreserved[foreground]
        return found

    def _set(self, position: int, view: WorkerView) -> None:
        """Takes over a worker's values."""
        credit = view.credit
        self._values[: _Row.LOAD, position] = (
            _bounded(credit.prefill_tokens),
            _bounded(credit.sequences),
            _bounded(credit.kv_blocks),
            _amount(view.sequences),
            _amount(view.waiting_tokens),
            _amount(view.free_blocks),
            _amount(view.running_context),
            _amount(view.max_sequences),
            _amount(view.max_tokens),
            _amount(view.total_blocks) * BLOCK_TOKENS,
            _bounded(view.credit_for(True).kv_blocks),
            _amount(view.sequences - view.batch_sequences),
            _amount(view.waiting_tokens - view.batch_waiting_tokens),
        )
        self.there[position] = True
        self.ready[position] = view.ready
        self._follow(position, view)

    def _set_model(self, position: int, view: WorkerView) -> None:
        self._models[:, position] = np.nan if view.step_model is None else view.step_model
        self._forget("speeds")

    def _booked(self, position: int, view: WorkerView) -> None:
        """Takes over what a booking changed."""
        self.credit_tokens[position] = _bounded(view.credit.prefill_tokens)
        self.credit_sequences[position] = _bounded(view.credit.sequences)
        self.credit_blocks[position] = _bounded(view.credit.kv_blocks)
        self.foreground_blocks[position] = _bounded(view.credit_for(True).kv_blocks)
        self.sequences[position] = _amount(view.sequences)
        self.waiting_tokens[position] = _amount(view.waiting_tokens)
        foreground = self._busy[True]
        foreground.sequences[position] = _amount(view.sequences - view.batch_sequences)
        foreground.waiting_tokens[position] = _amount(view.waiting_tokens - view.batch_waiting_tokens)
        self._follow(position, view)

    def _unset(self, position: int) -> None:
        self._values[:, position] = 0
        self._flags[:, position] = False
        self._models[:, position] = np.nan
        self._forget("speeds", "least")

    def _follow(self, position: int, view: WorkerView) -> None:
        """What follows from a column's values."""
        self.open[position] = view.open()
        self.foreground_open[position] = view.open(foreground=True)
        self._idle[position] = view.sequences <= 0
        usable = view.max_sequences - floor(view.max_sequences * self._reserve)
        for each, unreserved in zip(self._busy, self._unreserved, strict=True):
            unreserved[position] = each.sequences[position] < usable
        if "speeds" in self.__dict__:
            speeds = self.speeds
            for each in self._busy:
                each.load[position] = each.sequences[position] * speeds.slowness[position]
                each.queue_s[position] = each.waiting_tokens[position] * speeds.token_s[position]

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _widen(self, width: int) -> None:
        more = width - self.width
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
        self.open: Mask = flags[2]
        """Is ready and has credit for something."""
        self._idle: Mask = flags[3]
        self._unreserved = (flags[4], flags[6])
        self.foreground_open: Mask = flags[5]
        """The same for requests of other classes than BATCH."""
        self.credit_tokens: Floats = values[_Row.CREDIT_TOKENS]
        self.credit_sequences: Floats = values[_Row.CREDIT_SEQUENCES]
        self.credit_blocks: Floats = values[_Row.CREDIT_BLOCKS]
        self.sequences: Floats = values[_Row.SEQUENCES]
        self.waiting_tokens: Floats = values[_Row.WAITING_TOKENS]
        self.free_blocks: Floats = values[_Row.FREE_BLOCKS]
        self.running_context: Floats = values[_Row.CONTEXT]
        self.max_sequences: Floats = values[_Row.MAX_SEQUENCES]
        self.max_tokens: Floats = values[_Row.MAX_TOKENS]
        self.kv_tokens: Floats = values[_Row.KV_TOKENS]
        self.foreground_blocks: Floats = values[_Row.FOREGROUND_BLOCKS]
        self._busy = (
            Business(self.sequences, self.waiting_tokens, values[_Row.LOAD], values[_Row.QUEUE_S]),
            Business(
                values[_Row.FOREGROUND_SEQUENCES],
                values[_Row.FOREGROUND_TOKENS],
                values[_Row.FOREGROUND_LOAD],
                values[_Row.FOREGROUND_QUEUE_S],
            ),
        )


def _bounded(value: float) -> float:
    return value if -_MOST < value < _MOST else (_MOST if value > 0 else -_MOST)


def _amount(value: float) -> float:
    return value if 0 <= value < _MOST else (_MOST if value > 0 else 0.0)
