"""A sorted container of short sorted runs: adding, removing and walking stay cheap for 100,000 entries."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

_RUN = 512
Key = TypeVar("Key", bound=tuple[float, ...])


class Ranked(Generic[Key]):
    """Distinct keys in ascending order. Keys must not hold NaN."""

    __slots__ = ("_lasts", "_runs", "_size")

    def __init__(self) -> None:
        self._runs: list[list[Key]] = []
        self._lasts: list[Key] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Key]:
        for run in self._runs:
            yield from run

    @property
    def first(self) -> Key | None:
        """The least key."""
        return self._runs[0][0] if self._runs else None

    def add(self, key: Key) -> None:
        """Puts a key in its place."""
        self._size += 1
        if not self._runs:
            self._runs.append([key])
            self._lasts.append(key)
            return
        at = min(bisect_left(self._lasts, key), len(self._runs) - 1)
        run = self._runs[at]
        insort(run, key)
        if len(run) > 2 * _RUN:
            self._runs.insert(at + 1, run[_RUN:])
            del run[_RUN:]
            self._lasts.insert(at, run[-1])
        self._lasts[at] = run[-1]
        self._lasts[-1] = self._runs[-1][-1]

    def remove(self, key: Key) -> None:
        """Takes a key out. Raises KeyError when it is not there."""
        at = bisect_left(self._lasts, key)
        run = self._runs[at] if at < len(self._runs) else []
        within = bisect_left(run, key)
        if within == len(run) or run[within] != key:
            raise KeyError(key)
        del run[within]
        self._size -= 1
        if run:
            self._lasts[at] = run[-1]
        else:
            del self._runs[at], self._lasts[at]
