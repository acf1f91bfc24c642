"""Who is next: tenants take turns, and one tenant's texts keep their order. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Turns(Generic[Entry]):
    """A round of tenants with a line each. Who comes back to an empty line goes to the end of the round."""

    def __init__(self) -> None:
        self._again: deque[Entry] = deque()
        self._lines: OrderedDict[bytes, OrderedDict[Entry, None]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._again or self._lines)

    def add(self, tenant: bytes, entry: Entry) -> None:
        """At the end of the tenant's line."""
        self._lines.setdefault(tenant, OrderedDict())[entry] = None

    def add_again(self, entry: Entry) -> None:
        """Before all others: it had its turn."""
        self._again.append(entry)

    def take(self) -> Entry:
        """The next; its tenant goes to the end of the round. Raises LookupError when nothing waits."""
        if self._again:
            return self._again.popleft()
        if not self._lines:
            raise LookupError
        tenant, line = self._lines.popitem(last=False)
        entry, _ = line.popitem(last=False)
        if line:
            self._lines[tenant] = line
        return entry

    def remove(self, tenant: bytes, entry: Entry) -> None:
        """Takes out what waits, wherever it stands."""
        if entry in self._again:
            self._again.remove(entry)
            return
        line = self._lines[tenant]
        del line[entry]
        if not line:
            del self._lines[tenant]
