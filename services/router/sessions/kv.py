"""What a frame tells of a worker's KV cache, handed to the feed that puts it in order."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.v1 import session_pb2

from services.router.chains import ChainKind
from services.router.policy.kv_feed import Change, KvFeed
from services.router.policy.worker import BLOCK_TOKENS

_UNKNOWN = -1


def hear(feed: KvFeed, frame: session_pb2.WorkerFrame, now: float) -> None:
    """Takes the events and the piece of a snapshot that a frame has."""
    if frame.HasField("kv_events"):
        changes, digests = _unpacked(frame.kv_events.events)
        feed.events(frame.kv_events.first_number, changes, digests)
    if frame.HasField("kv_snapshot"):
        piece = frame.kv_snapshot
        feed.snapshot(piece.next_event_number, piece.digests, last=piece.last, now=now)


def _unpacked(events: Iterable[session_pb2.KvEvent]) -> tuple[list[int], list[bytes]]:
    changes, digests = [], []
    for event in events:
        if name := event.stored:
            changes.append(int(Change.STORED))
        elif name := event.removed:
            changes.append(int(Change.REMOVED))
        else:
            changes.append(int(Change.CLEARED) if event.cleared else _UNKNOWN)
        digests.append(name)
    return changes, digests


def chain_kind(hello: session_pb2.Hello) -> ChainKind | None:
    """How a worker names what it keeps; None where it says nothing of that, or not in blocks like others."""
    if "prefix_cache" not in hello.capabilities or hello.kv_spec.block_tokens != BLOCK_TOKENS:
        return None
    return ChainKind(hello.digests.numerics, hello.kv_spec.block_tokens)
