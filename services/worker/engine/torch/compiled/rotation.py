"""Between the merged product and attention: norms of heads, rotation, keys and values to their places."""

from __future__ import annotations

import math
from typing import Any

from numba import carray

from services.worker.engine.torch.compiled.jit import F32, FLOAT32, kernel, load, load_i64, next_unit, store

TOKENS_A_UNIT = 8


def compile_rotation(kind: int, heads: int, kv_heads: int, head_dim: int, *, normed: bool, eps: float) -> Any:
    """args: merged, query, keys, values, cos, sin, positions, places, tokens, query norm, key norm.

    merged: [tokens, heads + 2 kv_heads, head_dim]; query: [tokens, heads, head_dim] comes out; keys, values:
    [places, kv_heads, head_dim] of the pool; cos, sin: fp32 [positions, head_dim / 2]; positions, places:
    int64 [tokens]; norms: [head_dim], where heads are normed.
    """
    half = head_dim // 2
    merged_heads = heads + 2 * kv_heads
    least = F32(eps)

    @kernel
    def place(args: Any) -> None:
        a = carray(args, (13,))
        units, merged, query, keys, values, cos, sin = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        positions, places, tokens, query_norm, key_norm = a[8], a[9], a[10], a[11], a[12]
        unit = next_unit(args)
        while unit < units:
            for token in range(unit * TOKENS_A_UNIT, min((unit + 1) * TOKENS_A_UNIT, tokens)):
                begin, angle = token * merged_heads * head_dim, load_i64(positions, token) * half
                kept = load_i64(places, token) * kv_heads * head_dim
                for head in range(heads + kv_heads):
                    is_query = head < heads
                    target, norm = (query, query_norm) if is_query else (keys, key_norm)
                    to = (token * heads + head) * head_dim if is_query else kept + (head - heads) * head_dim
                    factor = F32(1.0)
                    if normed:
                        squares = F32(0.0)
                        for d in range(head_dim):
                            squares += load(kind, merged, begin + d) * load(kind, merged, begin + d)
                        factor = F32(1.0) / F32(math.sqrt(squares / F32(head_dim) + least))
                    for d in range(half):
                        first, second = load(kind, merged, begin + d), load(kind, merged, begin + half + d)
                        if normed:
                            first *= factor * load(kind, norm, d)
                            second *= factor * load(kind, norm, half + d)
                        near, far = load(FLOAT32, cos, angle + d), load(FLOAT32, sin, angle + d)
                        store(kind, target, to + d, first * near - second * far)
                        store(kind, target, to + half + d, second * near + first * far)
                    begin += head_dim
                for d in range(kv_heads * head_dim):
                    store(kind, values, kept + d, load(kind, merged, begin + d))
            unit = next_unit(args)

    return place
