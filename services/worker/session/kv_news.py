"""What a router is told of the KV cache: changes in order, and the whole content when it asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from headrace.v1 import session_pb2

from services.worker.scheduler.events import KVEvents
from services.worker.session.prefixes import NAME_BYTES

SMALL_BYTES = 8 << 10  # a frame beyond this takes no piece of a snapshot, which has 48 KiB
EVENTS_A_FRAME = 1024  # of at most 22 bytes
MOST_EVENTS = 1 << 16  # beyond this the router sees a gap and asks for a snapshot


class KvNews:
    """Events wait until a snapshot is complete."""

    def __init__(self) -> None:
        self._events: deque[tuple[bool, bytes]] = deque()  # whether it was stored, and its digest
        self._next_event = 0
        self._snapshot: deque[session_pb2.KvSnapshot] = deque()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self._events or self._snapshot)

    def put(self, events: KVEvents) -> None:
        """The engine's next events."""
        if not events.digests:
            return
        if len(self._events) + len(events.digests) > MOST_EVENTS:
            self._events.clear()
        if not self._events:
            self._next_event = events.first_number
        self._events.extend(zip(events.stored.tolist(), events.digests, strict=True))

    def snapshot(self, pieces: Iterable[session_pb2.KvSnapshot]) -> None:
        """The whole content; earlier events are part of it."""
        self._snapshot = deque(pieces)
        self._events.clear()

    def fill(self, frame: session_pb2.WorkerFrame, size: int) -> None:
        """Tells some in a frame of that many bytes."""
        if self._snapshot:
            if size < SMALL_BYTES:
                frame.kv_snapshot.CopyFrom(self._snapshot.popleft())
            return
        count = min(EVENTS_A_FRAME, len(self._events))
        if count:
            frame.kv_events.first_number = self._next_event
            self._next_event += count
        for _ in range(count):
            stored, digest = self._events.popleft()
            name = digest[:NAME_BYTES]
            frame.kv_events.events.add(**({"stored": name} if stored else {"removed": name}))
