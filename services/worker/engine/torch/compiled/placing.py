"""Between the merged product and attention: norms of heads, rotation, keys and values to their places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from services.worker.engine.torch.compiled.attention import PANEL_TOKENS, value_vectors
from services.worker.engine.torch.compiled.jit import F32, FLOAT32, kernel, load, load_i64, next_unit, store
from services.worker.engine.torch.compiled.tile import pair_of
from services.worker.engine.torch.compiled.vectors import LANES

TOKENS_A_UNIT = 8


def compile_placing(
    kind: int, heads: int, kv_heads: int, head_dim: int, block_size: int, *, normed: bool, eps: float
) -> Any:
    """args: merged, query, keys, values, cos, sin, positions, places, tokens, query norm, key norm.

    merged: [tokens, heads + 2 kv_heads, head_dim]; query: [kv_heads, tokens, group, head_dim] comes out;
    keys, values: of the pool, see `attention`; cos, sin: fp32 [positions, head_dim / 2]; positions, places:
    int64 [tokens], a place is block * block_size + offset; norms: [head_dim], where heads are normed.
    """
    half, group = head_dim // 2, heads // kv_heads
    merged_heads = heads + 2 * kv_heads
    least = F32(eps)
    pair = pair_of(kind)
    value_width = value_vectors(head_dim) * LANES
    key_step, value_step = PANEL_TOKENS * pair, value_width * pair  # from one pair of inputs to the next

    @kernel
    def place(args: Any) -> None:
        a = carray(args, (13,))
        units, merged, query, keys, values, cos, sin = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        positions, places, tokens, query_norm, key_norm = a[8], a[9], a[10], a[11], a[12]
        turned = np.empty(head_dim, np.float32)
        unit = next_unit(args)
        while unit < units:
            for token in range(unit * TOKENS_A_UNIT, min((unit + 1) * TOKENS_A_UNIT, tokens)):
                begin, angle = token * merged_heads * head_dim, load_i64(positions, token) * half
                block, offset = divmod(load_i64(places, token), block_size)
                panel, lane = offset // PANEL_TOKENS * PANEL_TOKENS, offset % PANEL_TOKENS
                for head in range(heads + kv_heads):
                    norm = query_norm if head < heads else key_norm
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
                        turned[d] = first * near - second * far
                        turned[half + d] = second * near + first * far
                    begin += head_dim
                    if head < heads:
                        to = ((head // group * tokens + token) * group + head % group) * head_dim
                        for d in range(head_dim):
                            store(kind, query, to + d, turned[d])
                    else:
                        kept = (
                            (block * kv_heads + head - heads) * block_size + panel
                        ) * head_dim + lane * pair
                        for d in range(head_dim):
                            store(kind, keys, kept + d // pair * key_step + d % pair, turned[d])
                for head in range(kv_heads):
                    kept = (block * kv_heads + head) * block_size * head_dim
                    kept += offset // pair * value_step + offset % pair
                    for d in range(head_dim):
                        column = d // value_width * value_width * block_size + d % value_width * pair
                        store(kind, values, kept + column, load(kind, merged, begin + d))
                    begin += head_dim
            unit = next_unit(args)

    return place
