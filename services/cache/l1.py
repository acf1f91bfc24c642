"""The values of this process's memory: least recently used go first, bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict

from services.cache.frames import Entry

OVERHEAD_BYTES = 320  # of Python, an entry


class L1:
    """A bounded LRU of entries by name. Times are unix seconds, given by the caller."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._names: dict[bytes, set[bytes]] = {}  # by tenant tag
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: bytes, now: float) -> Entry | None:
        """The entry, unless it is not there or has ended."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.ends_s <= now:
            self.remove(name)
            return None
        self._entries.move_to_end(name)
        return entry

    def put(self, name: bytes, entry: Entry) -> None:
        """Keeps an entry; others make room. One that is larger than all of the memory is not kept."""
        self.remove(name)
        if _size(name, entry) > self._most_bytes:
            return
        self._entries[name] = entry
        self._names.setdefault(entry.tag, set()).add(name)
        self.bytes += _size(name, entry)
        while self.bytes > self._most_bytes:
            self.remove(next(iter(self._entries)))

    def remove(self, name: bytes) -> None:
        """Drops an entry if it is there."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        self.bytes -= _size(name, entry)
        names = self._names[entry.tag]
        names.discard(name)
        if not names:
            del self._names[entry.tag]

    def forget(self, tag: bytes) -> set[bytes]:
        """Drops all entries of a tenant; returns their names."""
        names = set(self._names.get(tag, ()))
        for name in names:
            self.remove(name)
        return names


def _size(name: bytes, entry: Entry) -> int:
    return len(name) + len(entry.value) + OVERHEAD_BYTES
