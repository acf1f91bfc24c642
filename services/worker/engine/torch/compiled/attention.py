"""Attention of decodes: one query a sequence, over paged KV where it lies.

A unit is one key-value head of one sequence; softmax is taken block by block with a running maximum, so a
result depends on the sequence's own tokens only (Dao et al., FlashAttention; Kwon et al., PagedAttention).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from services.worker.engine.torch.compiled.jit import (
    F32,
    exp,
    kernel,
    load,
    load_i32,
    load_i64,
    next_unit,
    store,
)


def compile_attention(kind: int, heads: int, kv_heads: int, head_dim: int, block_size: int) -> Any:
    """args: query, keys, values, output, tokens, slots, contexts, tables, width of a table.

    query, output: [tokens, heads, head_dim]; keys, values: [places, kv_heads, head_dim] of the pool; of each
    sequence int64: its token's index, its slot, the tokens to read; tables: int32 [slots, width] blocks.
    """
    group = heads // kv_heads
    scale = F32(head_dim**-0.5)
    block_stride = block_size * kv_heads * head_dim
    token_stride = kv_heads * head_dim

    @kernel
    def attend(args: Any) -> None:
        a = carray(args, (11,))
        units, query, keys, values, output, tokens = a[1], a[2], a[3], a[4], a[5], a[6]
        slots, contexts, tables, width = a[7], a[8], a[9], a[10]
        q = np.empty((group, head_dim), np.float32)
        sums = np.empty((group, head_dim), np.float32)
        scores = np.empty((group, block_size), np.float32)
        most, total = np.empty(group, np.float32), np.empty(group, np.float32)
        unit = next_unit(args)
        while unit < units:
            row, head = unit // kv_heads, unit % kv_heads
            begin = (load_i64(tokens, row) * heads + head * group) * head_dim
            for g in range(group):
                most[g], total[g] = F32(-np.inf), F32(0.0)
                for d in range(head_dim):
                    q[g, d] = load(kind, query, begin + g * head_dim + d) * scale
                    sums[g, d] = F32(0.0)
            left = load_i64(contexts, row)
            entry = load_i64(slots, row) * width
            while left > 0:
                base = np.int64(load_i32(tables, entry)) * block_stride + head * head_dim
                count = min(left, block_size)
                for t in range(count):
                    key = base + t * token_stride
                    for g in range(group):
                        product = F32(0.0)
                        for d in range(head_dim):
                            product += q[g, d] * load(kind, keys, key + d)
                        scores[g, t] = product
                for g in range(group):
                    best = most[g]
                    for t in range(count):
                        best = scores[g, t] if scores[g, t] > best else best
                    fade = exp(most[g] - best)
                    weight = F32(0.0)
                    for t in range(count):
                        scores[g, t] = exp(scores[g, t] - best)
                        weight += scores[g, t]
                    most[g], total[g] = best, total[g] * fade + weight
                    for d in range(head_dim):
                        sums[g, d] *= fade
                for t in range(count):
                    value = base + t * token_stride
                    for g in range(group):
                        for d in range(head_dim):
                            sums[g, d] += scores[g, t] * load(kind, values, value + d)
                left -= count
                entry += 1
            for g in range(group):
                share = F32(1.0) / total[g]
                for d in range(head_dim):
                    store(kind, output, begin + g * head_dim + d, sums[g, d] * share)
            unit = next_unit(args)

    return attend
