"""Names of a prompt's blocks as the workers of a model know them: what the prefix index is asked with.

A chain depends on the scope's key, on the numerics of the workers, and on their block size: each kind of
worker has its own. Ids are packed arrays from the encoder on, so that hashing reads them in place.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from services.common.kv_chain import NAME_BYTES, chain_names, chain_root
from services.common.scope import ScopeKeys
from services.router.policy.ticket import NO_CHAINS, Digests

MOST_KINDS = 4
BLOCKS_A_TURN = 256
"""Named in one turn of the event loop: about 0.2 ms."""
IDS = "I"
assert array(IDS).itemsize == 4, "ids are packed as uint32"


class ChainKind(NamedTuple):
    """What workers must have in common to keep one block under one name."""

    numerics: bytes
    block_tokens: int

    @property
    def key(self) -> bytes:
        """Names the kind to the policy."""
        return self.numerics + self.block_tokens.to_bytes(4, "little")


def packed(ids: Iterable[int]) -> array[int]:
    """Ids as a packed array."""
    return array(IDS, ids)


async def chains(
    scope: ScopeKeys | None, kinds: Iterable[ChainKind], ids: array[int]
) -> Mapping[bytes, Digests]:
    """Chains of all kinds; lets others run between the parts of a long prompt."""
    if scope is None:
        return NO_CHAINS
    found = {}
    for kind in tuple(kinds)[:MOST_KINDS]:
        chain, parts = _Chain(scope, kind, ids), []
        while (part := chain.next()) is not None:
            parts.append(part)
            if chain.more:
                await asyncio.sleep(0)
        found[kind.key] = _digests(parts)
    return found


def chains_at_once(
    scope: ScopeKeys | None, kinds: Iterable[ChainKind], ids: array[int]
) -> Mapping[bytes, Digests]:
    """The same without a pause, for a request that comes back."""
    if scope is None:
        return NO_CHAINS
    return {
        kind.key: _digests(list(iter(_Chain(scope, kind, ids).next, None)))
        for kind in tuple(kinds)[:MOST_KINDS]
    }


class _Chain:
    """One chain under way. The block with the last id is left out: that id is always computed."""

    def __init__(self, scope: ScopeKeys, kind: ChainKind, ids: array[int]) -> None:
        self._key = scope.kv_key(kind.numerics)
        self._parent = chain_root(self._key, kind.numerics, kind.block_tokens)
        self._block_tokens = kind.block_tokens
        self._ids = ids
        self._end = (len(ids) - 1) // kind.block_tokens * kind.block_tokens if ids else 0
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether a part is left."""
        return self._at < self._end

    def next(self) -> bytes | None:
        """Names of the next blocks; None when there are none."""
        if not self.more:
            return None
        upto = min(self._end, self._at + BLOCKS_A_TURN * self._block_tokens)
        part = self._ids[self._at : upto].tobytes()
        self._at = upto
        names, self._parent = chain_names(self._key, self._parent, part, self._block_tokens)
        return names


def _digests(parts: list[bytes]) -> Digests:
    return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, NAME_BYTES // 8)
