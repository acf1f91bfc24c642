"""Attention over paged KV, for decodes and chunks of prompts in one batch.

Tiles lie within a block of the pool. Query heads of one KV head, for BLOCK_Q queries, are rows of one
product: row m is query m // group, head m % group. Rows of one query go to one launch, split over their
context to fill the device; all others to a second one, over blocks of queries; `_reduce` sums pieces up.

    deterministic   pieces have a length of their own, one tile shape serves all, and pieces are added in
                    order with the same operations, whether in one program (chunks) or in `_reduce`
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from services.worker.engine.torch.cuda.arguments import AttentionRows

_LOG2_E = 1.4426950408889634
_MULTIPROCESSORS = 132  # of a Hopper card: grids are made to fill them, on others they are as correct
_LEAST_BLOCKS = 4  # of a piece of context
_FIXED_BLOCKS = 8  # of a piece in deterministic attention
_SIZES = ("rows", "width", "splits")  # of a bucket: all share one compiled kernel
_ROWS = ("slots", "starts", "contexts")  # parts of the inputs of a step, wherever they begin


@triton.jit
def _tile(
    query, total, peak, mass, block, keys, values, at, positions, context, scale,
    ROW: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values into the running softmax, whose peak is in units of log2."""
    offsets = tl.arange(0, TILE)
    dims = tl.arange(0, BLOCK_D)
    start = block.to(tl.int64) * BLOCK_SIZE + at % BLOCK_SIZE
    places = (start + offsets)[:, None] * ROW + dims[None, :]
    loaded = dims[None, :] < HEAD_DIM
    key = tl.load(keys + places, mask=loaded, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="tf32x3")
    if MASKED:
        scores = tl.where((at + offsets)[None, :] <= positions[:, None], scores, float("-inf"))
        loaded = loaded & ((at + offsets)[:, None] < context)  # what lies beyond may be no number
    higher = tl.maximum(peak, tl.max(scores, 1) * scale)
    base = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher
    weights = tl.exp2(scores * scale - base[:, None])
    fade = tl.exp2(peak - base)
    value = tl.load(values + places, mask=loaded, other=0.0)
    total = tl.dot(weights.to(value.dtype), value, total * fade[:, None], input_precision="tf32x3")
    return total, higher, mass * fade + tl.sum(weights, 1)


@triton.jit
def _piece(
    query, table, keys, values, begin, end, sure, positions, context, scale,
    BLOCK_M: tl.constexpr, ROW: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Attention to [begin, end); to what is before `sure`, whole tiles, all queries may attend."""
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    middle = tl.minimum(tl.maximum(begin, sure), end)
    following = tl.load(
        table + begin // BLOCK_SIZE
    )  # a tile ahead: the loads of tiles then depend on no load
    for at in range(begin, middle, TILE):
        block = following
        following = tl.load(table + tl.minimum(at + TILE, end - 1) // BLOCK_SIZE)
        total, peak, mass = _tile(
            query, total, peak, mass, block, keys, values, at, positions, context, scale,
            ROW, HEAD_DIM, BLOCK_D, TILE, BLOCK_SIZE, False,
        )  # fmt: skip
    for at in range(middle, end, TILE):
        block = following
        following = tl.load(table + tl.minimum(at + TILE, end - 1) // BLOCK_SIZE)
        total, peak, mass = _tile(
            query, total, peak, mass, block, keys, values, at, positions, context, scale,
            ROW, HEAD_DIM, BLOCK_D, TILE, BLOCK_SIZE, True,
        )  # fmt: skip
    return total, peak, mass


@triton.jit
def _combine(total, peak, mass, more, more_peak, more_mass):
    """Two pieces of one softmax, by fma where compilers could choose: the same bits in all kernels."""
    higher = tl.maximum(peak, more_peak)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    fade, more_fade = tl.exp2(peak - base), tl.exp2(more_peak - base)
    mass = tl.fma(mass, fade, more_mass * more_fade)
    if len(total.shape) == 2:
        fade, more_fade = fade[:, None], more_fade[:, None]
    fade, more_fade = tl.broadcast_to(fade, total.shape), tl.broadcast_to(more_fade, total.shape)
    return tl.fma(total, fade, more * more_fade), higher, mass


@triton.jit
def _piece_length(limit, splits, BLOCK: tl.constexpr, LEAST: tl.constexpr, FIXED: tl.constexpr):
    """Tokens that a program reads of `limit`: whole blocks."""
    blocks = FIXED if FIXED > 0 else tl.maximum(tl.cdiv(tl.cdiv(limit, splits), BLOCK), LEAST)
    return blocks * BLOCK


@triton.jit
def _row_of(starts, rows, block, BLOCK_Q: tl.constexpr):
    """The row that a block of queries belongs to: row r begins with block starts[r] // BLOCK_Q + r."""
    low, high = 0, rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // BLOCK_Q + middle <= block:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ROWS)
def _attend(
    query, keys, values, slots, starts, contexts, tables, out, pieces, stats, rows, width, splits, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, CHUNKS: tl.constexpr,
    SPLIT: tl.constexpr, LEAST: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP if CHUNKS else 1
    ROW: tl.constexpr = KV_HEADS * HEAD_DIM
    row, first = tl.program_id(0), 0
    if CHUNKS:
        block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest ones first
        row = _row_of(starts, rows, block, BLOCK_Q)
        first = (block - tl.load(starts + row) // BLOCK_Q - row) * BLOCK_Q
    start = tl.load(starts + row)
    queries = tl.load(starts + row + 1) - start
    if (queries <= first) | ((queries > 1) != CHUNKS):
        return
    context = tl.load(contexts + row)
    before = context - queries + first  # position of the first query
    limit = tl.minimum(before + BLOCK_Q, context)
    length = _piece_length(limit, splits, BLOCK_SIZE, LEAST, FIXED)
    split = tl.program_id(2)
    if split * length >= limit:
        return
    lane = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    number = first + lane // GROUP
    kv_head = tl.program_id(1)
    head = (start + number).to(tl.int64) * HEADS + kv_head * GROUP + lane % GROUP  # of all tokens' heads
    valid = (lane < BLOCK_Q * GROUP) & (number < queries)
    wanted = valid[:, None] & (dims[None, :] < HEAD_DIM)
    places = head[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(query + places, mask=wanted, other=0.0)
    table = tables + tl.load(slots + row).to(tl.int64) * width
    positions = context - queries + number
    sure = (before + 1) // TILE * TILE
    keys += kv_head * HEAD_DIM
    values += kv_head * HEAD_DIM
    begin = split * length
    total, peak, mass = _piece(
        q, table, keys, values, begin, tl.minimum(begin + length, limit), sure, positions, context, scale,
        BLOCK_M, ROW, HEAD_DIM, BLOCK_D, TILE, BLOCK_SIZE,
    )  # fmt: skip
    if FIXED > 0 and not SPLIT:
        for begin in range(length, limit, length):
            more, more_peak, more_mass = _piece(
                q, table, keys, values, begin, tl.minimum(begin + length, limit), sure, positions, context,
                scale, BLOCK_M, ROW, HEAD_DIM, BLOCK_D, TILE, BLOCK_SIZE,
            )  # fmt: skip
            total, peak, mass = _combine(total, peak, mass, more, more_peak, more_mass)
    if not SPLIT:
        tl.store(out + places, (total / mass[:, None]).to(out.dtype.element_ty), mask=wanted)
    else:
        token_head = head if CHUNKS else row.to(tl.int64) * HEADS + kv_head * GROUP + lane % GROUP
        part = token_head * splits + split
        tl.store(pieces + part[:, None] * HEAD_DIM + dims[None, :], total, mask=wanted)
        tl.store(stats + part * 2, peak, mask=valid)
        tl.store(stats + part * 2 + 1, mass, mask=valid)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_ROWS)
def _reduce(
    starts, contexts, out, pieces, stats, rows, splits,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, CHUNKS: tl.constexpr, LEAST: tl.constexpr,
    FIXED: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Pieces of one head of one query, in order."""
    row = tl.program_id(0)
    source = (tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)) * splits
    token = row
    if CHUNKS:
        row = _row_with(starts, rows, token)
    start = tl.load(starts + row)
    queries = tl.load(starts + row + 1) - start
    if not CHUNKS:
        token = start
    if (token - start >= queries) | ((queries > 1) != CHUNKS):
        return
    context = tl.load(contexts + row)
    block_end = (token - start) // BLOCK_Q * BLOCK_Q + BLOCK_Q
    limit = tl.minimum(context - queries + block_end, context)
    count = tl.cdiv(limit, _piece_length(limit, splits, BLOCK_SIZE, LEAST, FIXED))
    dims = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    peak = tl.full([1], float("-inf"), tl.float32)
    mass = tl.zeros([1], tl.float32)
    one = tl.arange(0, 1)
    for begin in range(0, count, UNROLL):
        for step in tl.static_range(UNROLL):
            part = begin + step + one  # [1]
            there = part < count
            inside = there & (dims < HEAD_DIM)
            more = tl.load(pieces + (source + part) * HEAD_DIM + dims, mask=inside, other=0.0)
            more_peak = tl.load(stats + (source + part) * 2, mask=there, other=float("-inf"))
            more_mass = tl.load(stats + (source + part) * 2 + 1, mask=there, other=0.0)
            total, peak, mass = _combine(total, peak, mass, more, more_peak, more_mass)
    place = (token.to(tl.int64) * HEADS + tl.program_id(1)) * HEAD_DIM + dims
    tl.store(out + place, (total / mass).to(out.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit
def _row_with(starts, rows, token):
    """The last row that starts at a token or before, so the one with queries among those that start there."""
    low, high = 0, rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) <= token:
            low = middle
        else:
            high = middle
    return low


class _Shape(NamedTuple):
    """How attention is cut for a bucket."""

    block_m: int  # query heads of one KV head a program takes
    warps: int
    stages: int
    splits: int
    fixed: int  # tiles of a piece, 0: as many as fill the device


def attention_workspace(
    rows: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    width: int,
    *,
    deterministic: bool = False,
) -> int:
    """See `reference.attention_workspace`."""
    decode = _decode_splits(rows, kv_heads, width, deterministic)
    chunk = 1 if deterministic else _chunk_splits(tokens, heads, kv_heads)
    units = rows * decode if decode > 1 else 0, tokens * chunk if chunk > 1 else 0
    return sum(_aligned(heads * (head_dim + 2) * each) for each in units)


def attend(
    query: torch.Tensor,
    pool: torch.Tensor,
    rows: AttentionRows,
    tables: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor,
    *,
    scale: float,
    block_size: int,
    deterministic: bool = False,
) -> None:
    """See `reference.attend`."""
    tokens, heads, head_dim = query.shape
    kv_heads = pool.shape[-2]
    splits = _decode_splits(len(rows.slots), kv_heads, tables.shape[1], deterministic)
    shape = _decode_shape(heads // kv_heads, head_dim, query.element_size(), splits, deterministic)
    used = _attend_rows(query, pool, rows, tables, out, workspace, scale, block_size, shape, chunks=False)
    if rows.max_queries > 1:
        shape = _chunk_shape(tokens, heads, kv_heads, head_dim, query.element_size(), deterministic)
        rest = workspace[used:]
        _attend_rows(query, pool, rows, tables, out, rest, scale, block_size, shape, chunks=True)


def _attend_rows(
    query: torch.Tensor,
    pool: torch.Tensor,
    rows: AttentionRows,
    tables: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor,
    scale: float,
    block_size: int,
    shape: _Shape,
    *,
    chunks: bool,
) -> int:
    """Either the rows of one query, or all others; returns how much of the workspace is used."""
    tokens, heads, head_dim = query.shape
    kv_heads, sequences = pool.shape[-2], len(rows.slots)
    block_q = shape.block_m // (heads // kv_heads) if chunks else 1
    blocks = tokens // block_q + sequences if chunks else sequences
    units = (tokens if chunks else sequences) * heads * (shape.splits if shape.splits > 1 else 0)
    pieces, stats = workspace[: units * (head_dim + 2)].split([units * head_dim, units * 2])
    common = {
        "HEADS": heads, "HEAD_DIM": head_dim, "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_SIZE": block_size, "CHUNKS": chunks, "LEAST": _LEAST_BLOCKS,
        "FIXED": shape.fixed, "enable_fp_fusion": not shape.fixed,
    }  # fmt: skip
    keys, values = pool.unbind(0)
    _attend[blocks, kv_heads, shape.splits](
        query, keys, values, rows.slots, rows.starts, rows.contexts, tables, out, pieces, stats,
        sequences, tables.shape[1], shape.splits, scale * _LOG2_E, KV_HEADS=kv_heads, BLOCK_M=shape.block_m,
        SPLIT=shape.splits > 1, TILE=min(block_size, 128 // query.element_size()), num_warps=shape.warps,
        num_stages=shape.stages, **common,
    )  # fmt: skip
    if shape.splits > 1:
        _reduce[tokens if chunks else sequences, heads](
            rows.starts, rows.contexts, out, pieces, stats, sequences, shape.splits,
            BLOCK_Q=block_q, UNROLL=8, num_warps=1, **common,
        )  # fmt: skip
    return _aligned(units * (head_dim + 2))


def _decode_splits(rows: int, kv_heads: int, width: int, deterministic: bool) -> int:
    """Pieces of a context: four programs a multiprocessor, and none so long that others wait for it."""
    if deterministic:
        return _ceil(width, _FIXED_BLOCKS)
    wanted = max(_ceil(4 * _MULTIPROCESSORS, rows * kv_heads), _ceil(width, 64))
    return max(1, min(wanted, _ceil(width, _LEAST_BLOCKS), 128))


def _chunk_splits(tokens: int, heads: int, kv_heads: int) -> int:
    """Pieces of the context of a block of queries: several where blocks alone do not fill the device."""
    programs = _ceil(tokens * (heads // kv_heads), 128) * kv_heads
    return max(1, min(_MULTIPROCESSORS // programs, 8))


def _decode_shape(group: int, head_dim: int, itemsize: int, splits: int, deterministic: bool) -> _Shape:
    if deterministic:
        return _fixed_shape(group, head_dim, itemsize, splits)
    return _Shape(max(16, triton.next_power_of_2(group)), 4, _stages(head_dim, itemsize), splits, 0)


def _chunk_shape(
    tokens: int, heads: int, kv_heads: int, head_dim: int, itemsize: int, deterministic: bool
) -> _Shape:
    group = heads // kv_heads
    if deterministic:
        return _fixed_shape(group, head_dim, itemsize, 1)
    block_m = 128 if itemsize == 2 else _wide_rows(group, head_dim)
    return _Shape(block_m, 8, _stages(head_dim, itemsize), _chunk_splits(tokens, heads, kv_heads), 0)


def _fixed_shape(group: int, head_dim: int, itemsize: int, splits: int) -> _Shape:
    """Of deterministic attention, whatever the batch."""
    block_m = 64 if itemsize == 2 else _wide_rows(group, head_dim)
    return _Shape(block_m, 4 if head_dim <= 128 else 8, _stages(head_dim, itemsize), splits, _FIXED_BLOCKS)


def _wide_rows(group: int, head_dim: int) -> int:
    """Rows of a program in fp32, which takes more shared memory."""
    return max(64 if head_dim <= 128 else 16, 1 << (group - 1).bit_length())


def _stages(head_dim: int, itemsize: int) -> int:
    """Tiles in flight, in 227 KB of shared memory."""
    return 3 if triton.next_power_of_2(head_dim) * itemsize <= 256 else 2


def _aligned(numbers: int) -> int:
    return -(-numbers // 32) * 32


def _ceil(whole: int, part: int) -> int:
    return -(-whole // part)
