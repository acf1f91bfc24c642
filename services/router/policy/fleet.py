"""The workers of one model as arrays, one column a worker: what placement scores at once.

A worker keeps its position while it is there; the prefix index knows it by the same position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.router.policy.columns import Columns, some
from services.router.policy.prefix_index import PrefixIndex
from services.router.policy.speed import Mask, Speeds, StepModel, alike
from services.router.policy.spread import Hits
from services.router.policy.ticket import Cost, Digests, Ticket
from services.router.policy.worker import WorkerView

_MASKS_KEPT = 256
_FAR_SLOWER = 4.0


class _Shown(NamedTuple):
    """A prompt that a worker computed, after so many tokens, in so many seconds at most."""

    tokens: int
    before: int
    seconds: float


class Fleet(Columns):
    """The workers of one model that are there, and what their caches hold."""

    def __init__(self, index: PrefixIndex | None = None) -> None:
        self.index = index or PrefixIndex()
        super().__init__(self.index.width)
        self._views: list[WorkerView | None] = [None] * self.width
        self._told: dict[int, StepModel | None] = {}  # the claims that speeds were worked out from
        self._shown: dict[int, _Shown] = {}  # what disproves a claim
        self._masks: dict[tuple[frozenset[tuple[str, str]], frozenset[str]], Mask] = {}
        self._models_of: Speeds | None = None
        self._step_models: dict[int, StepModel] = {}  # of these speeds, as far as asked for
        self._given = 0
        self.last_cold: npt.NDArray[np.int64] = np.zeros(self.width, np.int64)
        """When a worker was last given a request of which it kept little, as a running number."""
        self.last_given: npt.NDArray[np.int64] = np.zeros(self.width, np.int64)

    def __len__(self) -> int:
        return len(self.index.positions)

    def __iter__(self) -> Iterator[WorkerView]:
        return (each for each in self._views if each is not None)

    def __contains__(self, key: str) -> bool:
        return key in self.index.positions

    @property
    def sole(self) -> int | None:
        """The position of the only worker, where there is but one."""
        positions = self.index.positions
        return next(iter(positions.values())) if len(positions) == 1 else None

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
            self._make_room()
        earlier, self._views[position] = self._views[position], view
        if view == earlier:
            return position
        self._set(position, view)
        if earlier is None or not self._tells_the_same(position, view.step_model):
            self._told[position] = view.step_model
            self._believe(position)
        if earlier is None or _traits(earlier) != _traits(view):
            self._forget("least")
            self._masks.clear()
        return position

    def drop(self, key: str) -> None:
        """Forgets a worker and all that it keeps."""
        position = self.index.positions.get(key)
        if position is None:
            return
        self.index.leave(key)
        self._views[position] = None
        self._unset(position)
        self._told.pop(position, None)
        self._shown.pop(position, None)
        self.last_cold[position] = self.last_given[position] = 0
        self._masks.clear()

    def book(self, position: int, cost: Cost, *, cold: bool, foreground: bool = True) -> None:
        """Takes a request off a worker's credit and onto its load. `cold`: little of it was cached there."""
        view = self.at(position)
        view.book(cost, foreground)
        self._booked(position, view)
        self._given += 1
        self.last_given[position] = self._given
        if cold:
            self.last_cold[position] = self._given

    def computed(self, key: str, tokens: int, before: int, seconds: float) -> None:
        """A worker computed a prompt within so many seconds, so it is not far slower, whatever it claims."""
        position = self.index.positions.get(key)
        claim = self._told.get(position) if position is not None else None
        if position is None or claim is None or seconds <= 0:
            return
        if claim.prefill_s(tokens, before) > _FAR_SLOWER * seconds:
            self._shown[position] = _Shown(tokens, before, seconds)
        elif self._shown.pop(position, None) is None:
            return
        self._believe(position)

    def claims(self) -> Iterator[StepModel]:
        """What workers say of their steps, where it could be true of some machine."""
        for claim in self._told.values():
            if claim is not None and all(isfinite(each) and each >= 0 for each in claim):
                yield claim

    def hits(self, chains: Mapping[bytes, Digests]) -> Hits:
        """Blocks of a prompt that each worker keeps, from its beginning on. [positions]"""
        if len(chains) == 1:
            return self.index.match(next(iter(chains.values())))
        hits = self.index.no_hits()
        for digests in chains.values():
            hits = np.maximum(hits, self.index.match(digests))
        return hits

    @property
    def mean_sequences(self) -> float:
        """That run or wait in a worker."""
        return self._kinds[False].all_sequences / (len(self.index.positions) or 1)

    def open_workers(self, foreground: bool) -> int:
        """How many are ready and have credit for something, of the foreground or of batch work."""
        return self._kinds[foreground].open_workers

    @property
    def any_open(self) -> bool:
        """Whether some worker would take some request now."""
        return bool(self.open_workers(True) or self.open_workers(False))

    def model_of(self, position: int) -> StepModel:
        """What is believed of a worker's steps."""
        if self.speeds is not self._models_of:
            self._models_of, self._step_models = self.speeds, {}
        model = self._step_models.get(position)
        if model is None:
            told = self._models_of.models[:, position].tolist()
            model = self._step_models[position] = StepModel(*told)
        return model

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
        if ticket.total_tokens > self.least[1]:
            able = able & (self.max_tokens >= ticket.total_tokens)
        if ticket.barred and (barred := self._positions(ticket.barred)):
            able = able.copy()
            able[barred] = False
        return able

    def openings(self, ticket: Ticket) -> Mask:
        """Workers that could take the request at once."""
        able, affordable = self.suited(ticket), self.affordable(ticket.cost, ticket.foreground)
        return affordable if able is self.ready else able & affordable

    def opens(self, ticket: Ticket) -> bool:
        """Whether some worker could take the request at once."""
        sole = self.sole
        return some(self.openings(ticket)) if sole is None else self.takes(sole, ticket)

    def takes(self, position: int, ticket: Ticket, reserve: bool = False) -> bool:
        """Whether the worker at a position could take the request at once; `reserve` as in `affordable`."""
        kind = self._kinds[ticket.foreground]
        room = (kind.unreserved_room if reserve else kind.room).item(position)
        return room >= ticket.cost.kv_blocks and self.at(position).suits(ticket)

    def affordable(self, cost: Cost, foreground: bool = False, reserve: bool = False) -> Mask:
        """Workers that are ready and whose credit covers a request, by the rule of `WorkerView.affords`.

        `reserve`: without the slots that are kept for short requests.
        """
        kind = self._kinds[foreground]
        enough: Mask = (kind.unreserved_room if reserve else kind.room) >= cost.kv_blocks
        return enough

    def _believe(self, position: int) -> None:
        """Takes over a worker's claim, as far as it was not disproved."""
        view, shown = self.at(position), self._shown.get(position)
        self._set_model(position, view)
        if shown is not None and view.step_model is not None:
            claimed_s = view.step_model.prefill_s(shown.tokens, shown.before)
            if claimed_s > _FAR_SLOWER * shown.seconds:
                self._models[:5, position] *= shown.seconds / claimed_s

    def _tells_the_same(self, position: int, claim: StepModel | None) -> bool:
        told = self._told.get(position)
        return told is claim or alike(told, claim)

    def _positions(self, keys: Iterable[str]) -> list[int]:
        positions = self.index.positions
        return [positions[key] for key in keys if key in positions]

    def _make_room(self) -> None:
        more = self.index.width - self.width
        self._widen(self.index.width)
        self._views += [None] * more
        self.last_cold = np.pad(self.last_cold, (0, more))
        self.last_given = np.pad(self.last_given, (0, more))
        self._masks.clear()


def _traits(view: WorkerView) -> tuple[object, ...]:
    return view.labels, view.capabilities, view.max_tokens, view.total_blocks
