"""The workers of one model as arrays, one column a worker: what placement scores at once.

A worker keeps its position while it is there; the prefix index knows it by the same position. Reports and
bookings change one column, in constant time; what depends on all columns is worked out when it is next asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from services.router.policy.prefix_index import Hits, PrefixIndex
from services.router.policy.speed import Floats, Mask, Speeds, StepModel, believed
from services.router.policy.ticket import Cost, Digests, Ticket
from services.router.policy.worker import BLOCK_TOKENS, WorkerView

_MOST = float(1 << 40)
_MASKS_KEPT = 256
_OF_LOAD = ("open", "load", "queue_s", "_unreserved", "_idle")
"""What is worked out again after every report and booking."""


class _Row(IntEnum):
    READY = 0
    CREDIT_TOKENS = 1
    CREDIT_SEQUENCES = 2
    CREDIT_BLOCKS = 3
    SEQUENCES = 4
    WAITING_TOKENS = 5
    FREE_BLOCKS = 6
    CONTEXT = 7
    MAX_SEQUENCES = 8
    MAX_TOKENS = 9
    KV_TOKENS = 10
    THERE = 11


class Fleet:
    """The workers of one model that are there, and what their caches hold."""

    def __init__(self, index: PrefixIndex | None = None) -> None:
        self.index = index or PrefixIndex()
        self._views: list[WorkerView | None] = []
        self._given = 0
        self._reserve = 0.0
        self._extend(self.index.width)

    def __len__(self) -> int:
        return len(self.index.positions)

    def __iter__(self) -> Iterator[WorkerView]:
        return (each for each in self._views if each is not None)

    def __contains__(self, key: str) -> bool:
        return key in self.index.positions

    def get(self, key: str) -> WorkerView | None:
        """The values of a worker."""
        position = self.index.positions.get(key)
        return None if position is None else self._views[position]

    def at(self, position: int) -> WorkerView:
        """The values of the worker at a position. Raises KeyError."""
        view = self._views[position]
        if view is None:
            raise KeyError(position)
        return view

    def put(self, view: WorkerView) -> int:
        """Takes over what a worker reports; also how a new one becomes known. Returns its position."""
        position = self.index.join(view.key, view.total_blocks)
        if position >= len(self._views):
            self._extend(self.index.width)
        earlier, self._views[position] = self._views[position], view
        credit = view.credit
        self._values[:, position] = (
            view.ready,
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
            1,
        )
        self._noticed(position, earlier, view)
        return position

    def drop(self, key: str) -> None:
        """Forgets a worker and all that it keeps."""
        position = self.index.positions.get(key)
        if position is None:
            return
        self.index.leave(key)
        self._views[position] = None
        self._values[:, position] = 0
        self._models[:, position] = np.nan
        self.last_cold[position] = self.last_given[position] = 0
        self._forget("ready", "speeds", "traits", *_OF_LOAD)
        self._masks.clear()

    def book(self, position: int, cost: Cost, *, cold: bool) -> None:
        """Takes a request off a worker's credit and onto its load. `cold`: little of it was cached there."""
        self.at(position).book(cost)
        values = self._values
        values[_Row.CREDIT_TOKENS, position] -= cost.prefill_tokens
        values[_Row.CREDIT_SEQUENCES, position] -= cost.sequences
        values[_Row.CREDIT_BLOCKS, position] -= cost.kv_blocks
        values[_Row.SEQUENCES, position] += cost.sequences
        values[_Row.WAITING_TOKENS, position] += cost.prefill_tokens
        self._given += 1
        self.last_given[position] = self._given
        if cold:
            self.last_cold[position] = self._given
        self._forget(*_OF_LOAD)

    def hits(self, chains: Mapping[bytes, Digests]) -> Hits:
        """Blocks of a prompt that each worker keeps, from its beginning on. [positions]"""
        if len(chains) == 1:
            return self.index.match(next(iter(chains.values())))
        hits = self.index.no_hits()
        for digests in chains.values():
            hits = np.maximum(hits, self.index.match(digests))
        return hits

    @cached_property
    def ready(self) -> Mask:
        """Workers that take new requests, with or without credit at this moment."""
        ready: Mask = self._values[_Row.READY] > 0
        return ready

    @cached_property
    def open(self) -> Mask:
        """Workers that are ready and have credit for something."""
        values = self._values
        credited: Mask = (values[_Row.CREDIT_SEQUENCES] > 0) & (values[_Row.CREDIT_TOKENS] > 0)
        return self.ready & credited

    @cached_property
    def load(self) -> Floats:
        """Sequences there, as many as they would be on a worker of the pool's median speed."""
        load: Floats = self.sequences * self.speeds.slowness
        return load

    @cached_property
    def queue_s(self) -> Floats:
        """Seconds of prefill that wait there."""
        queue_s: Floats = self.waiting_tokens * self.speeds.token_s
        return queue_s

    @property
    def any_open(self) -> bool:
        """Whether some worker would take some request now."""
        return bool(self.open.any())

    @cached_property
    def speeds(self) -> Speeds:
        """What is believed of the workers' speeds."""
        return believed(self._models)

    @cached_property
    def traits(self) -> tuple[float, float]:
        """Least KV tokens and least longest sequence among the workers that are there."""
        there = self._values[_Row.THERE] > 0
        if not there.any():
            return 0.0, 0.0
        return float(self.kv_tokens[there].min()), float(self.max_tokens[there].min())

    def model_of(self, position: int) -> StepModel:
        """What is believed of a worker's steps."""
        return StepModel(*self.speeds.models[:, position].tolist())

    def labelled(self, labels: frozenset[tuple[str, str]], capabilities: frozenset[str]) -> Mask:
        """Workers that have all of these."""
        key = (labels, capabilities)
        mask = self._masks.get(key)
        if mask is None:
            if len(self._masks) >= _MASKS_KEPT:
                self._masks.clear()
            mask = self._masks[key] = np.array(
                [
                    each is not None and labels <= each.labels and capabilities <= each.capabilities
                    for each in self._views
                ],
                np.bool_,
            )
        return mask

    def suited(self, ticket: Ticket) -> Mask:
        """Workers that are ready and could run the request. Not to be written to."""
        able = self.ready
        if ticket.labels or ticket.capabilities:
            able = able & self.labelled(ticket.labels, ticket.capabilities)
        if ticket.total_tokens > self.traits[1]:
            able = able & (self.max_tokens >= ticket.total_tokens)
        barred = self._positions(ticket.barred)
        if barred:
            able = able.copy()
            able[barred] = False
        return able

    def affordable(self, cost: Cost) -> Mask:
        """Workers whose credit covers a request, by the rule of `WorkerView.affords`."""
        enough: Mask = (self.credit_blocks >= cost.kv_blocks) | self._idle
        return self.open & enough

    def unreserved(self, reserve: float) -> Mask:
        """Workers with sequence slots left beyond this share of all. Not to be written to."""
        if reserve != self._reserve:
            self._reserve = reserve
            self._forget("_unreserved")
        return self._unreserved

    @cached_property
    def _unreserved(self) -> Mask:
        unreserved: Mask = self.sequences < self.max_sequences - np.floor(self.max_sequences * self._reserve)
        return unreserved

    @cached_property
    def _idle(self) -> Mask:
        idle: Mask = self.sequences <= 0
        return idle

    def _positions(self, keys: Iterable[str]) -> list[int]:
        positions = self.index.positions
        return [positions[key] for key in keys if key in positions]

    def _noticed(self, position: int, earlier: WorkerView | None, view: WorkerView) -> None:
        self._forget(*_OF_LOAD)
        if earlier is None or earlier.ready != view.ready:
            self._forget("ready")
        if earlier is None or earlier.step_model != view.step_model:
            self._models[:, position] = np.nan if view.step_model is None else view.step_model
            self._forget("speeds")
        if earlier is None or _traits(earlier) != _traits(view):
            self._forget("traits", "speeds")
            self._masks.clear()

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _extend(self, width: int) -> None:
        old = len(self._views)
        values, models = np.zeros((len(_Row), width)), np.full((6, width), np.nan)
        given = np.zeros((2, width), np.int64)
        if old:
            values[:, :old], models[:, :old] = self._values, self._models
            given[0, :old], given[1, :old] = self.last_cold, self.last_given
        self._values: Floats = values
        self._models: Floats = models
        self.last_cold: npt.NDArray[np.int64] = given[0]
        self.last_given: npt.NDArray[np.int64] = given[1]
        self._views += [None] * (width - old)
        self._masks: dict[tuple[frozenset[tuple[str, str]], frozenset[str]], Mask] = {}
        self._bind()

    def _bind(self) -> None:
        """Rows by name; they are views of one array."""
        self._forget("ready", "speeds", "traits", *_OF_LOAD)
        values = self._values
        self.credit_blocks = values[_Row.CREDIT_BLOCKS]
        self.credit_tokens = values[_Row.CREDIT_TOKENS]
        self.credit_sequences = values[_Row.CREDIT_SEQUENCES]
        self.sequences = values[_Row.SEQUENCES]
        self.waiting_tokens = values[_Row.WAITING_TOKENS]
        self.free_blocks = values[_Row.FREE_BLOCKS]
        self.running_context = values[_Row.CONTEXT]
        self.max_sequences = values[_Row.MAX_SEQUENCES]
        self.max_tokens = values[_Row.MAX_TOKENS]
        self.kv_tokens = values[_Row.KV_TOKENS]


def _traits(view: WorkerView) -> tuple[object, ...]:
    return view.labels, view.capabilities, view.max_tokens, view.total_blocks


def _bounded(value: float) -> float:
    return value if -_MOST < value < _MOST else (_MOST if value > 0 else -_MOST)


def _amount(value: float) -> float:
    return value if 0 <= value < _MOST else (_MOST if value > 0 else 0.0)
