"""Attention over paged KV where it lies, for decodes and prompts alike.

Queries that read the same keys are rows of one tile: the query heads of a key-value head, of one token or of
a few that follow each other. Softmax is taken block by block with a running maximum (Dao et al.,
FlashAttention; Kwon et al., PagedAttention), so a token's result depends on nothing but its own sequence, to
the last bit: neither on neighbours nor on how its prompt was cut into chunks.

A block keeps its keys and values by head, as panels that products read (`tile`); p inputs are a pair, w the
numbers of one or two vectors: keys with 32 tokens side by side, [kv_heads, tokens / 32, head_dim / p, 32, p],
values with numbers side by side, [kv_heads, head_dim / w, tokens / p, w, p]. Of a block that has just begun
what is not written yet is zero: its share in a sum is 0, and must not meet what another sequence left there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from services.worker.engine.torch.compiled.jit import (
    F32,
    FLOAT32,
    exp,
    kernel,
    load_i32,
    load_i64,
    next_unit,
    store,
)
from services.worker.engine.torch.compiled.tile import MOST_ROWS, multiply
from services.worker.engine.torch.compiled.vectors import LANES

PANEL_TOKENS = 2 * LANES


def value_vectors(head_dim: int) -> int:
    """Vectors of a panel of values."""
    return 2 if head_dim % (2 * LANES) == 0 else 1


def can_attend(heads: int, kv_heads: int, head_dim: int, block_size: int) -> bool:
    """Whether heads and blocks can be cut into panels, and a token's queries fit a tile."""
    return head_dim % LANES == 0 and block_size % PANEL_TOKENS == 0 and heads // kv_heads <= MOST_ROWS


def compile_attention(kind: int, heads: int, kv_heads: int, head_dim: int, block_size: int) -> Any:
    """args: query, keys, values, output, pieces, their count, tables, width of a table, tokens.

    query: [kv_heads, tokens, group, head_dim]; keys, values: of the pool; output: [tokens, heads, head_dim];
    of each piece int64: its first token, its queries (rows / group at most), its slot, the first one's
    position; tables: int32 [slots, width] blocks.
    """
    group = heads // kv_heads
    size = 4 if kind == FLOAT32 else 2
    scale = F32(head_dim**-0.5)
    vectors = value_vectors(head_dim)
    key_panel, key_vectors = PANEL_TOKENS * head_dim * size, PANEL_TOKENS // LANES
    value_width = vectors * LANES
    value_panel = value_width * block_size * size
    block_bytes = block_size * head_dim * size  # of one head

    @kernel
    def attend(args: Any) -> None:
        a = carray(args, (11,))
        units, query, keys, values, output, pieces = a[1], a[2], a[3], a[4], a[5], a[6]
        count, tables, width, tokens = a[7], a[8], a[9], a[10]
        scores = np.empty((MOST_ROWS, block_size), np.float32)
        shares = np.empty((MOST_ROWS, block_size), np.float32)  # in the model's kind
        sums = np.empty((MOST_ROWS, head_dim), np.float32)
        part = np.empty((MOST_ROWS, head_dim), np.float32)
        most, total = np.empty(MOST_ROWS, np.float32), np.empty(MOST_ROWS, np.float32)
        score_at, share_at, part_at = scores.ctypes.data, shares.ctypes.data, part.ctypes.data
        unit = next_unit(args)
        while unit < units:
            head, piece = unit // count, (unit % count) * 4
            token, queries = load_i64(pieces, piece), load_i64(pieces, piece + 1)
            entry, at = load_i64(pieces, piece + 2) * width, load_i64(pieces, piece + 3)
            rows = queries * group
            source = query + (head * tokens + token) * group * head_dim * size
            most[:], total[:], sums[:] = F32(-np.inf), F32(0.0), F32(0.0)
            blocks = (at + queries - 1) // block_size + 1
            upcoming = (np.int64(load_i32(tables, entry)) * kv_heads + head) * block_bytes
            for block in range(blocks):
                base = upcoming
                if block + 1 < blocks:
                    upcoming = (np.int64(load_i32(tables, entry + block + 1)) * kv_heads + head) * block_bytes
                for panel in range(block_size // PANEL_TOKENS):
                    multiply(
                        kind,
                        head_dim,
                        head_dim,
                        key_vectors,
                        FLOAT32,
                        block_size,
                        source,
                        keys + base + panel * key_panel,
                        values + base + panel * key_panel,
                        0,
                        score_at + panel * PANEL_TOKENS * 4,
                        rows,
                    )
                for row in range(rows):
                    last = at + row // group - block * block_size  # what this query may read of the block
                    best = most[row]
                    for t in range(block_size):
                        score = scores[row, t] * scale if t <= last else F32(-np.inf)
                        scores[row, t] = score
                        best = score if score > best else best
                    weight = F32(0.0)
                    for t in range(block_size):
                        share = exp(scores[row, t] - best) if t <= last else F32(0.0)
                        store(kind, share_at, row * block_size + t, share)
                        weight += share
                    fade = exp(most[row] - best)
                    most[row], total[row] = best, total[row] * fade + weight
                    for d in range(head_dim):
                        sums[row, d] *= fade
                for panel in range(head_dim // value_width):
                    multiply(
                        kind,
                        block_size,
                        block_size,
                        vectors,
                        FLOAT32,
                        head_dim,
                        share_at,
                        values + base + panel * value_panel,
                        keys + upcoming + panel * value_panel,
                        0,
                        part_at + panel * value_width * 4,
                        rows,
                    )
                for row in range(rows):
                    for d in range(head_dim):
                        sums[row, d] += part[row, d]
            for row in range(rows):
                to = ((token + row // group) * heads + head * group + row % group) * head_dim
                factor = F32(1.0) / total[row]
                for d in range(head_dim):
                    store(kind, output, to + d, sums[row, d] * factor)
            unit = next_unit(args)
        most[0] = shares[0, 0]  # an address keeps no array: numba frees it after its last mention

    return attend
