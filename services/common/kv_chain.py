"""Names of KV blocks: a chain of keyed digests, which says nothing to those without the key.

    d_0 = BLAKE2b-256(key, frame("headrace-kv-v1", numerics id, block size))
    d_i = BLAKE2b-256(key, frame(d_{i-1}, ids of block i as little-endian uint32))

A worker and a router that compute it over the same ids get the same bytes. Past a public prefix the chain
goes on under the tenant's key, over the public digest before it. Only full blocks have names.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 32
NAME_BYTES = 16
"""Of a digest, as the wire and indexes keep it."""
BLOCK_TOKENS = 64


class ChainNames(NamedTuple):
    """Names of blocks, one after the other, and the digest that the next block follows."""

    names: bytes
    parent: bytes


def chain_root(key: bytes, numerics_id: bytes, block_tokens: int = BLOCK_TOKENS) -> bytes:
    """d_0: what the first block's digest continues."""
    return _digest(key, b"headrace-kv-v1", numerics_id, block_tokens.to_bytes(4, "little"))


def extend_chain(key: bytes, parent: bytes, block_ids: bytes) -> bytes:
    """d_i of one full block; `block_ids` are its ids as little-endian uint32."""
    return _digest(key, parent, block_ids)


def chain_digests(
    key: bytes, parent: bytes, ids: npt.NDArray[np.integer], block_tokens: int = BLOCK_TOKENS
) -> list[bytes]:
    """Digests of all full blocks of `ids`, which follow `parent`."""
    packed = np.ascontiguousarray(ids, dtype="<u4").tobytes()
    size = 4 * block_tokens
    digests = []
    for start in range(0, len(packed) - size + 1, size):
        parent = extend_chain(key, parent, packed[start : start + size])
        digests.append(parent)
    return digests


def chain_names(key: bytes, parent: bytes, packed: bytes, block_tokens: int = BLOCK_TOKENS) -> ChainNames:
    """Names of the full blocks of `packed` ids, which follow `parent`; 0.65 us each."""
    size = 4 * block_tokens
    copy = blake2b(DIGEST_BYTES.to_bytes(8, "little"), key=key, digest_size=DIGEST_BYTES).copy
    between, names = size.to_bytes(8, "little"), []
    for start in range(0, len(packed) - size + 1, size):
        digest = copy()
        digest.update(parent)
        digest.update(between)
        digest.update(packed[start : start + size])
        parent = digest.digest()
        names.append(parent[:NAME_BYTES])
    return ChainNames(b"".join(names), parent)


def _digest(key: bytes, *fields: bytes) -> bytes:
    framed = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    return blake2b(framed, key=key, digest_size=DIGEST_BYTES).digest()
