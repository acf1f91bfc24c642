"""How workers look to one kind of work, one column a worker, kept ready for a decision to read.

There are two kinds: batch work, and the foreground, to which batch work gives way in a worker.
"""

from __future__ import annotations

from enum import IntEnum
from math import floor, inf
from typing import NamedTuple

import numpy as np

from services.router.policy.speed import Floats, Mask, Speeds
from services.router.policy.worker import WorkerView

MOST = float(1 << 40)


class _Row(IntEnum):
    SEQUENCES = 0
    WAITING_TOKENS = 1
    LOAD = 2
    JOINED_LOAD = 3
    QUEUE_S = 4
    READY_LOAD = 5
    CALM_LOAD = 6
    ROOM = 7
    UNRESERVED_ROOM = 8


_WITHOUT_WORKER = np.array([[0.0]] * 5 + [[inf]] * 2 + [[-inf]] * 2)


class Limits(NamedTuple):
    """Whom a placement leaves out beside those without credit."""

    reserve: float = 0.0
    """Of sequence slots, for short requests."""
    queue_s: float = inf
    """Of waiting prefill: beyond it a worker is not calm."""


class Kind:
    """Arrays of one length, not to be written to from outside."""

    def __init__(self, foreground: bool, width: int) -> None:
        self._foreground = foreground
        self._speeds: Speeds | None = None
        self.limits = Limits()
        self.all_sequences = 0.0
        """Of all workers together: whole numbers, so that adding them up as they change is exact."""
        self.open_workers = 0
        self._bind(np.repeat(_WITHOUT_WORKER, width, axis=1), np.zeros(width, np.bool_))

    def take(self, position: int, view: WorkerView) -> None:
        """Takes over a worker's values."""
        sequences, tokens = self._amounts(view)
        self.all_sequences += sequences - self.sequences.item(position)
        self.sequences[position], self.waiting_tokens[position] = sequences, tokens
        opened = view.open(self._foreground)
        self._set_open(position, opened)
        room = self._room_of(view) if opened else -inf
        self.room[position] = room
        usable = view.max_sequences - floor(view.max_sequences * self.limits.reserve)
        self.unreserved_room[position] = room if sequences < usable else -inf
        if self._speeds is not None:
            self._weigh(position, view.ready, sequences, tokens)

    def copy(self, position: int, other: Kind) -> None:
        """Takes over what the other kind has just taken of a worker that looks the same to both."""
        self.all_sequences += other.sequences.item(position) - self.sequences.item(position)
        self._values[:, position] = other._values[:, position]
        self._set_open(position, other.open.item(position))

    def drop(self, position: int) -> None:
        """No worker is there any more."""
        self.all_sequences -= self.sequences.item(position)
        self._values[:, position] = _WITHOUT_WORKER[:, 0]
        self._set_open(position, False)

    def widen(self, more: int) -> None:
        """So many more columns."""
        self._speeds = None
        values = np.hstack([self._values, np.repeat(_WITHOUT_WORKER, more, axis=1)])
        self._bind(values, np.pad(self.open, (0, more)))

    def weigh(self, speeds: Speeds, ready: Mask) -> None:
        """Works out anew what depends on the whole pool's speeds."""
        self._speeds = speeds
        np.multiply(self.sequences, speeds.slowness, self.load)
        np.add(self.load, speeds.slowness, self.joined_load)
        np.multiply(self.waiting_tokens, speeds.token_s, self.queue_s)
        self.ready_load[:] = np.where(ready, self.load, inf)
        self.calm_load[:] = np.where(self.queue_s <= self.limits.queue_s, self.ready_load, inf)

    def _set_open(self, position: int, opened: bool) -> None:
        self.open_workers += opened - self.open.item(position)
        self.open[position] = opened

    def _amounts(self, view: WorkerView) -> tuple[float, float]:
        """Sequences, and prompt tokens that wait."""
        if not self._foreground:
            return amount(view.sequences), amount(view.waiting_tokens)
        tokens = view.waiting_tokens - view.batch_waiting_tokens
        return amount(view.sequences - view.batch_sequences), amount(tokens)

    def _room_of(self, view: WorkerView) -> float:
        """By the rule of `WorkerView.affords`."""
        return inf if view.sequences <= 0 else bounded(view.credit_for(self._foreground).kv_blocks)

    def _weigh(self, position: int, ready: bool, sequences: float, tokens: float) -> None:
        assert self._speeds is not None
        slowness = self._speeds.slowness.item(position)
        load, queue_s = sequences * slowness, tokens * self._speeds.token_s.item(position)
        self.load[position], self.queue_s[position] = load, queue_s
        self.joined_load[position] = load + slowness
        self.ready_load[position] = load if ready else inf
        self.calm_load[position] = load if ready and queue_s <= self.limits.queue_s else inf

    def _bind(self, values: Floats, opened: Mask) -> None:
        """Rows by name; they are views of one array."""
        self._values = values
        self.open: Mask = opened
        """Is ready and has credit for something."""
        self.sequences: Floats = values[_Row.SEQUENCES]
        self.waiting_tokens: Floats = values[_Row.WAITING_TOKENS]
        self.load: Floats = values[_Row.LOAD]
        """Sequences, as many as they would be on a worker of the pool's median speed."""
        self.joined_load: Floats = values[_Row.JOINED_LOAD]
        """The same with one sequence more."""
        self.queue_s: Floats = values[_Row.QUEUE_S]
        """Seconds of prefill that wait there."""
        self.ready_load: Floats = values[_Row.READY_LOAD]
        """The load; infinite where nothing is taken."""
        self.calm_load: Floats = values[_Row.CALM_LOAD]
        """The same; infinite also where much prefill waits."""
        self.room: Floats = values[_Row.ROOM]
        """KV blocks that one request may take; -inf without any credit, inf on an idle worker."""
        self.unreserved_room: Floats = values[_Row.UNRESERVED_ROOM]
        """The same; -inf also where the slots that are left are kept for short requests."""


def bounded(value: float) -> float:
    """A finite amount, of whatever a worker tells."""
    return value if -MOST < value < MOST else (MOST if value > 0 else -MOST)


def amount(value: float) -> float:
    """The same, not negative."""
    return value if 0 <= value < MOST else (MOST if value > 0 else 0.0)
