"""The reusable blocks of the engine, as its events tell: to estimate costs, and for snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

from headrace.v1 import session_pb2

from services.common.kv_chain import chain_root, extend_chain
from services.worker.engine.base import EngineDescription
from services.worker.scheduler.events import KVEvents
from services.worker.session.intake import to_ids

NAME_BYTES = 16  # of a digest, as the wire tells it
NAMES_A_PIECE = 3000
ROOTS = 1024
"""Keys whose chains' roots are kept."""


class Prefixes:
    """Names of all reusable blocks after event `number`."""

    def __init__(self, engine: EngineDescription) -> None:
        self._block_tokens = engine.spec.block_size
        self._root = lru_cache(ROOTS)(partial(_root, engine.numerics_id, engine.spec.block_size))
        self._names: set[bytes] = set()
        self.number = 0

    def apply(self, events: KVEvents) -> None:
        """Takes the engine's next events."""
        if not events.digests:
            return
        for stored, digest in zip(events.stored.tolist(), events.digests, strict=True):
            (self._names.add if stored else self._names.discard)(digest[:NAME_BYTES])
        self.number = events.first_number + len(events.digests) - 1

    def cached_tokens(self, submit: session_pb2.Submit) -> int:
        """Tokens of the prompt that are likely found: an estimate, the engine decides."""
        if not self._names or not (submit.kv_key or submit.public_kv_key):
            return 0
        ids, size = submit.prompt_ids, self._block_tokens
        public = submit.public_prefix_tokens // self._block_tokens if submit.public_kv_key else 0
        parent, found = b"", 0
        while (found + 1) * size < len(ids):  # the last token is always computed
            key = submit.public_kv_key if found < public else submit.kv_key
            if not key:
                break
            parent = parent or self._root(key)
            parent = extend_chain(key, parent, to_ids(ids[found * size : (found + 1) * size]).tobytes())
            if parent[:NAME_BYTES] not in self._names:
                break
            found += 1
        return found * self._block_tokens

    def snapshot(self) -> Iterator[session_pb2.KvSnapshot]:
        """All names in pieces that fit a frame, as they are now."""
        names, following = list(self._names), self.number + 1
        starts = range(0, max(len(names), 1), NAMES_A_PIECE)
        for start in starts:
            yield session_pb2.KvSnapshot(
                next_event_number=following,
                digests=b"".join(names[start : start + NAMES_A_PIECE]),
                last=start == starts[-1],
            )


def _root(numerics_id: bytes, block_tokens: int, key: bytes) -> bytes:
    return chain_root(key, numerics_id, block_tokens)
