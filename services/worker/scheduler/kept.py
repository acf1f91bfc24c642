"""Tokens that would wait elsewhere anyway wait here, so that they leave the engine together. Pure.

A router merges the tokens of most requests into fewer messages to their clients, and says so (`Merge`). Told
step by step they would cost every process on the way a message a step for nothing. Requests of one Merge are
told together, so that most steps have nothing to tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from services.worker.scheduler.events import Outputs
from services.worker.scheduler.request import Merge
from services.worker.scheduler.step import Int64


class Told(NamedTuple):
    """Tokens that are to be told now."""

    outputs: Outputs
    tenants: Counter[bytes]
    """How many each tenant tag has."""


class KeptTokens:
    """All that is kept back. Times in seconds."""

    def __init__(self) -> None:
        self._groups: dict[Merge, _Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def keep(self, merge: Merge, outputs: Outputs, tenants: Counter[bytes], now: float) -> None:
        """Takes one token each of requests of that Merge, made in one step."""
        group = self._groups.get(merge)
        if group is None:
            group = self._groups[merge] = _Group(now)
        group.add(outputs, tenants)

    def due(self, now: float, next_s: float) -> list[Told]:
        """What must not wait for the end of the next step, which is expected to take `next_s`."""
        due = [merge for merge, group in self._groups.items() if group.is_due(merge, now + next_s)]
        return [self._groups.pop(merge).told() for merge in due]

    def everything(self) -> list[Told]:
        """All of it."""
        groups, self._groups = self._groups, {}
        return [group.told() for group in groups.values()]

    def of(self, leaving: dict[int, bytes]) -> list[Told]:
        """What these requests have here; their tenants by handle."""
        handles = np.array(list(leaving), np.int64)
        found = [group.without(handles, leaving) for group in self._groups.values()]
        self._groups = {merge: group for merge, group in self._groups.items() if not group.empty}
        return [each for each in found if len(each.outputs)]


class _Group:
    """Of one Merge."""

    def __init__(self, since_s: float) -> None:
        self._since_s = since_s
        self._steps = 0
        self._parts: list[Outputs] = []
        self._tenants: Counter[bytes] = Counter()

    @property
    def empty(self) -> bool:
        return not any(map(len, self._parts))

    def add(self, outputs: Outputs, tenants: Counter[bytes]) -> None:
        self._steps += 1
        self._parts.append(outputs)
        self._tenants += tenants

    def is_due(self, merge: Merge, then: float) -> bool:
        return self._steps >= merge.tokens or then - self._since_s > merge.wait_s

    def told(self) -> Told:
        return Told(joined(self._parts), self._tenants)

    def without(self, handles: Int64, tenants: dict[int, bytes]) -> Told:
        """Takes out what these handles have."""
        together = joined(self._parts)
        leaves = np.isin(together.handles, handles)
        told = _rows(together, leaves)
        self._parts = [_rows(together, ~leaves)]
        counts = Counter([tenants[handle] for handle in told.handles.tolist()])
        self._tenants -= counts
        return Told(told, counts)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Rows of all parts, which have no log-probabilities, in order."""
    return Outputs(
        np.concatenate([each.handles for each in parts]),
        np.concatenate([each.indices for each in parts]),
        np.concatenate([each.tokens for each in parts]),
    )


def _rows(outputs: Outputs, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Outputs:
    return Outputs(outputs.handles[chosen], outputs.indices[chosen], outputs.tokens[chosen])
