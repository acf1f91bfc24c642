"""Encodings that were made before, kept within the scope that they were made for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_ENTRY_OVERHEAD_BYTES = 250
_MIN_SOURCE_BYTES = 512
"""A shorter text is encoded sooner than it is looked up."""


class Statistics(NamedTuple):
    """What the cache did."""

    hits: int
    misses: int
    bytes_held: int


class EncodingCache:
    """Least recently used encodings up to a number of bytes.

    Keys are keyed by the caller's scope digest: equal texts of two scopes have unrelated entries, and who has
    no scope finds and leaves nothing.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._entries: OrderedDict[bytes, npt.NDArray[np.uint32]] = OrderedDict()
        self._held = self._hits = self._misses = 0

    def key(self, scope: bytes, source: bytes) -> bytes | None:
        """Key of a canonical source; None when it must not or need not be cached."""
        if not scope or len(scope) > hashlib.blake2b.MAX_KEY_SIZE or len(source) < _MIN_SOURCE_BYTES:
            return None
        return hashlib.blake2b(source, digest_size=32, key=scope).digest()

    def get(self, key: bytes | None) -> list[int] | None:
        """The ids, or None."""
        if key is None:
            return None
        found = self._entries.get(key)
        if found is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        ids: list[int] = found.tolist()
        return ids

    def put(self, key: bytes | None, ids: list[int]) -> None:
        """Keeps the ids and drops the least recently used ones beyond the capacity."""
        if key is None or key in self._entries:
            return
        entry = np.asarray(ids, dtype=np.uint32)
        self._entries[key] = entry
        self._held += entry.nbytes + _ENTRY_OVERHEAD_BYTES
        while self._held > self._capacity:
            _, dropped = self._entries.popitem(last=False)
            self._held -= dropped.nbytes + _ENTRY_OVERHEAD_BYTES

    def statistics(self) -> Statistics:
        """Counts since the start."""
        return Statistics(self._hits, self._misses, self._held)
