"""Which ended requests are kept for a claim, and who makes room when they are too many: who has most.

One tenant's thousand short answers do not push out what another's client has not heard yet.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

MOST_ENDED = 1024
MOST_ENDED_IDS = 4 << 20
"""About 16 MiB: prompts and outputs of all that has ended."""


class _Entry(NamedTuple):
    tag: bytes
    ids: int
    until_s: float


class _Share:
    """What is kept of one tenant's requests of one class."""

    def __init__(self) -> None:
        self.keys: OrderedDict[bytes, None] = OrderedDict()  # a set, as they ended
        self.ids = 0


class Ended:
    """Keys of requests that have ended, in that order.

    Args:
        most: requests. most_ids: ids of their prompts and outputs together.
    """

    def __init__(self, most: int = MOST_ENDED, most_ids: int = MOST_ENDED_IDS) -> None:
        self.ids = 0
        self._most = most
        self._most_ids = most_ids
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._shares: dict[bytes, _Share] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def add(self, key: bytes, tag: bytes, ids: int, until_s: float) -> None:
        """One more; `tag`: whose it is; until when it is kept, not before the times of those before it."""
        self._entries[key] = _Entry(tag, ids, until_s)
        share = self._shares.setdefault(tag, _Share())
        share.keys[key] = None
        share.ids += ids
        self.ids += ids

    def discard(self, key: bytes) -> None:
        """Its time is over, or it has begun anew. Unknown keys are ignored."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        share = self._shares[entry.tag]
        del share.keys[key]
        share.ids -= entry.ids
        self.ids -= entry.ids
        if not share.keys:
            del self._shares[entry.tag]

    def due(self, now: float) -> bytes | None:
        """One whose time is over."""
        key = next(iter(self._entries), None)
        return key if key is not None and self._entries[key].until_s <= now else None

    def excess(self) -> bytes | None:
        """Where there are too many: the oldest of those of whom most is kept."""
        if len(self._entries) <= self._most and self.ids <= self._most_ids:
            return None
        return next(iter(max(self._shares.values(), key=self._part).keys))

    def _part(self, share: _Share) -> float:
        return max(len(share.keys) / self._most, share.ids / self._most_ids)
