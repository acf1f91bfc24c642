"""What a layer does to each token by itself: norms, rotation and placing of keys and values, the gate.

One pass over memory each, in fp32, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _add_norm(hidden, delta, weight, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    places = tl.program_id(0).to(tl.int64) * WIDTH + columns
    x = tl.load(hidden + places, mask=inside, other=0.0)
    if ADD:
        x = (x.to(tl.float32) + tl.load(delta + places, mask=inside, other=0.0).to(tl.float32)).to(x.dtype)
        tl.store(hidden + places, x, mask=inside)
    wide = x.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, (wide * inverse * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(
    merged, query_norm, key_norm, cos, sin, positions, places, keys, values, query_out, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    HEADS_AT_ONCE: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS_AT_ONCE + tl.arange(0, HEADS_AT_ONCE))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < HEADS + 2 * KV_HEADS) & (column < HALF)
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    source = merged + (token * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + column
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF)
        inverse = tl.where(is_value, 1.0, tl.rsqrt(mean + eps)[:, None])
        first *= inverse * _head_weight(query_norm, key_norm, is_query, is_value, column, HALF)
        second *= inverse * _head_weight(query_norm + HALF, key_norm + HALF, is_query, is_value, column, HALF)
    angle = tl.load(positions + token).to(tl.int64) * HALF + column
    cosine = tl.where(is_value, 1.0, tl.load(cos + angle, mask=column < HALF, other=0.0).to(tl.float32))
    sine = tl.where(is_value, 0.0, tl.load(sin + angle, mask=column < HALF, other=0.0).to(tl.float32))
    rotated = first * cosine - second * sine
    turned = second * cosine + first * sine
    target = query_out + (token * HEADS + head) * (2 * HALF) + column
    tl.store(target, rotated.to(query_out.dtype.element_ty), mask=inside & is_query)
    tl.store(target + HALF, turned.to(query_out.dtype.element_ty), mask=inside & is_query)
    row = tl.load(places + token).to(tl.int64) * KV_HEADS - HEADS
    target = keys + (row + head) * (2 * HALF) + column
    is_key = inside & (head >= HEADS) & (head < HEADS + KV_HEADS)
    tl.store(target, rotated.to(keys.dtype.element_ty), mask=is_key)
    tl.store(target + HALF, turned.to(keys.dtype.element_ty), mask=is_key)
    target = values + (row - KV_HEADS + head) * (2 * HALF) + column
    tl.store(target, rotated.to(values.dtype.element_ty), mask=inside & is_value)
    tl.store(target + HALF, turned.to(values.dtype.element_ty), mask=inside & is_value)


@triton.jit
def _head_weight(query_norm, key_norm, is_query, is_value, column, HALF: tl.constexpr):
    of_query = tl.load(query_norm + column, mask=column < HALF, other=0.0).to(tl.float32)
    of_key = tl.load(key_norm + column, mask=column < HALF, other=0.0).to(tl.float32)
    return tl.where(is_value, 1.0, tl.where(is_query, of_query, of_key))


@triton.jit
def _gate(merged, out, FFN: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = merged + token * (2 * FFN) + columns
    gate = tl.load(source, mask=columns < FFN, other=0.0).to(tl.float32)
    up = tl.load(source + FFN, mask=columns < FFN, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token * FFN + columns, gated.to(out.dtype.element_ty), mask=columns < FFN)


def add_norm(
    hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> None:
    """See `reference.add_norm`."""
    tokens, width = hidden.shape
    block = triton.next_power_of_2(width)
    _add_norm[tokens,](
        hidden, hidden if delta is None else delta, weight, out, eps,
        WIDTH=width, BLOCK=block, ADD=delta is not None, num_warps=_warps(block), enable_fp_fusion=True,
    )  # fmt: skip


def place(
    merged: torch.Tensor,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    places: torch.Tensor,
    pool: torch.Tensor,
    query_out: torch.Tensor,
    heads: int,
    kv_heads: int,
) -> None:
    """See `reference.place`."""
    half = query_out.shape[-1] // 2
    keys, values = pool.unbind(0)
    at_once = 16
    _place[len(merged), triton.cdiv(heads + 2 * kv_heads, at_once)](
        merged, cos if query_norm is None else query_norm, cos if key_norm is None else key_norm,
        cos, sin, positions, places, keys, values, query_out, eps,
        HEADS=heads, KV_HEADS=kv_heads, HALF=half, BLOCK=triton.next_power_of_2(half),
        HEADS_AT_ONCE=at_once, NORMS=query_norm is not None, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def gate(merged: torch.Tensor, out: torch.Tensor) -> None:
    """See `reference.gate`."""
    tokens, ffn = out.shape
    block = min(1024, triton.next_power_of_2(ffn))
    _gate[tokens, triton.cdiv(ffn, block)](
        merged, out, FFN=ffn, BLOCK=block, num_warps=4, enable_fp_fusion=True
    )


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))
