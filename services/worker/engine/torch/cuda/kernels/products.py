"""Triton kernels of products in 8 bits and with fixed tiles: the functions of `product_reference`, for a GPU.

Grids depend on shapes only and nothing is allocated: each launch can be captured. Tensors are contiguous.
The rows of a product are no specialisation of its kernel, and its tiles depend on the weight alone: all
batches run the same code, in which no row of a tile meets another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from services.worker.engine.torch.cuda import product_reference as reference

_LEAST = tl.constexpr(reference.LEAST)
_ROWS = 64  # of a tile: what one group of warps multiplies on Hopper
_TILE_BYTES = 128  # of a row of inputs


class _Tiles(NamedTuple):
    """How a product is cut."""

    outputs: int
    inputs: int


@triton.jit
def _quantise(
    x, values, scales,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    wide = tl.load(x + row * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    finite = tl.abs(wide) < float("inf")
    unfit = tl.max(tl.where(finite, 0, 1), 0) > 0
    peak = tl.maximum(tl.max(tl.where(finite, tl.abs(wide), 0.0), 0), _LEAST)
    scaled = tl.where(finite & (unfit == 0), wide * (MOST / peak), 0.0)
    scaled = tl.minimum(tl.maximum(scaled, -MOST), MOST)
    if WHOLE:
        scaled = tl.floor(scaled + 0.5)
    tl.store(scales + row, tl.where(unfit, float("nan"), peak / MOST))
    tl.store(values + row * PADDED + columns, scaled.to(values.dtype.element_ty), mask=columns < PADDED)


@triton.jit
def _rescale(
    sums, scales, weight_scales, bias, out,
    OUTPUTS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < OUTPUTS
    total = tl.load(sums + row * PADDED + columns, mask=inside, other=0).to(tl.float32)
    total = total * tl.load(scales + row) * tl.load(weight_scales + columns, mask=inside, other=0.0)
    if BIASED:
        total += tl.load(bias + columns, mask=inside, other=0.0)
    tl.store(out + row * OUTPUTS + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _multiply(
    x, weight, scales, weight_scales, bias, out, rows,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(0, INPUTS, BLOCK_K):
        inside = at + column < INPUTS
        source = x + row[:, None] * INPUTS + (at + column)[None, :]
        left = tl.load(source, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        source = weight + output[None, :] * INPUTS + (at + column)[:, None]
        right = tl.load(source, mask=(output < OUTPUTS)[None, :] & inside[:, None], other=0.0)
        if SCALED:  # fp16 holds each e4m3 exactly
            left, right = left.to(tl.float16), right.to(tl.float16)
        total = tl.dot(left, right, total, input_precision="ieee")
    if SCALED:
        total *= tl.load(scales + row, mask=row < rows, other=0.0)[:, None]
        total *= tl.load(weight_scales + output, mask=output < OUTPUTS, other=0.0)[None, :]
    if BIASED:
        total += tl.load(bias + output, mask=output < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    inside = (row < rows)[:, None] & (output < OUTPUTS)[None, :]
    target = out + row[:, None] * OUTPUTS + output[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)


def quantise_fp8(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    """As in `product_reference`; a row is one program."""
    _launch_quantise(x, values, scales, reference.FP8_MOST, whole=False)


def quantise_int8(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    """As in `product_reference`; a row is one program."""
    _launch_quantise(x, values, scales, reference.INT8_MOST, whole=True)


def rescale(
    sums: torch.Tensor,
    scales: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """As in `product_reference`."""
    rows, outputs = out.shape
    block = min(4096, triton.next_power_of_2(outputs))
    biased = bias is not None
    _rescale[(rows, triton.cdiv(outputs, block))](
        sums, scales, weight_scales, bias if biased else weight_scales, out,
        OUTPUTS=outputs, PADDED=sums.shape[1], BLOCK=block, BIASED=biased,
    )  # fmt: skip


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    weight_scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """As in `product_reference`. Programs of the same outputs follow each other: the cache has those."""
    rows, outputs = out.shape
    tiles = tiles_of(weight)
    _multiply[(triton.cdiv(rows, _ROWS), triton.cdiv(outputs, tiles.outputs))](
        x, weight, out if scales is None else scales, out if weight_scales is None else weight_scales,
        out if bias is None else bias, out, rows,
        OUTPUTS=outputs, INPUTS=weight.shape[1], BLOCK_M=_ROWS, BLOCK_N=tiles.outputs, BLOCK_K=tiles.inputs,
        SCALED=scales is not None, BIASED=bias is not None,
        num_warps=4, num_stages=4 if scales is None else 3,
    )  # fmt: skip


def tiles_of(weight: torch.Tensor) -> _Tiles:
    """By the weight alone. Small matrices are cut finer: one token is to keep the whole device reading."""
    outputs = len(weight)
    width = 128 if outputs >= 16384 else 64 if outputs >= 8192 else 32
    return _Tiles(width, _TILE_BYTES // weight.dtype.itemsize)


def _launch_quantise(
    x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, most: float, *, whole: bool
) -> None:
    rows, width = x.shape
    block = triton.next_power_of_2(values.shape[1])
    _quantise[(rows,)](
        x, values, scales,
        WIDTH=width, PADDED=values.shape[1], BLOCK=block, MOST=most, WHOLE=whole,
        num_warps=min(16, max(1, block // 1024)),
    )  # fmt: skip
