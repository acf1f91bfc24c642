"""Products of a few rows with a panel, in registers: what LLVM does not find by itself.

A panel is 16 or 32 columns wide; of each pair of inputs its numbers lie side by side, so that one instruction
multiplies two inputs with sixteen columns (AVX512-BF16; other CPUs widen them first). In fp32 a "pair" is one
input. Sums are fp32, over the inputs in their order: a row's result does not depend on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from services.worker.engine.torch.compiled.jit import FLOAT32
from services.worker.engine.torch.compiled.vectors import (
    LANES,
    LONG,
    SUMS,
    WORD,
    WORDS,
    add_bias,
    all_lanes,
    ask_for,
    by_rows,
    declared,
    keep,
    load,
    phi,
    spread,
)

MOST_ROWS = 12  # of a tile: 24 sums, two vectors of a panel and an input are what registers hold


class _BFloat(ir.types.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BFLOATS = ir.VectorType(_BFloat(), 2 * LANES)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has the instruction."""
    return bool(binding.get_host_cpu_features().get("avx512bf16"))


def pair_of(kind: int) -> int:
    """Inputs that lie side by side in a panel."""
    return 1 if kind == FLOAT32 else 2


@intrinsic(prefer_literal=True)
def multiply(
    _typing: Any,
    kind: Any,
    inputs: Any,
    source_stride: Any,
    vectors: Any,
    target_kind: Any,
    target_stride: Any,
    source: Any,
    panel: Any,
    following: Any,
    bias: Any,
    target: Any,
    rows: Any,
) -> Any:
    """Rows of a source times a panel, plus a bias unless that is null.

    Literals: kind of source and panel; inputs of a row; numbers from one row of the source to the next;
    vectors of a panel; kind of the target; numbers from one of its rows to the next. Then addresses: source
    [rows, inputs], panel, what is read after it (brought near meanwhile: a CPU alone looks no further than a
    page), bias fp32 [columns], target; rows: 1 to MOST_ROWS.
    """
    tile = _Tile(
        pairs=inputs.literal_value // pair_of(kind.literal_value),
        vectors=vectors.literal_value,
        narrow=kind.literal_value != FLOAT32,
        source_stride=source_stride.literal_value // pair_of(kind.literal_value),
        target_stride=target_stride.literal_value,
        wide=target_kind.literal_value == FLOAT32,
    )

    def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        by_rows(builder, values[11], MOST_ROWS, lambda count: tile.emit(builder, count, *values[6:11]))
        return context.get_dummy_value()

    literals = (kind, inputs, source_stride, vectors, target_kind, target_stride)
    return types.void(*literals, *[types.int64] * 6), codegen


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """Code of a tile. Distances are constants: there are too few registers for an address of each row."""

    pairs: int
    vectors: int
    narrow: bool  # source and panel are bf16
    source_stride: int  # pairs
    target_stride: int  # numbers
    wide: bool  # the target is fp32

    def emit(
        self, builder: Any, rows: int, source: Any, panel: Any, following: Any, bias: Any, target: Any
    ) -> None:
        """Sums over all inputs, then bias and target."""
        inputs = builder.inttoptr(source, WORD.as_pointer())
        weights, later = (builder.inttoptr(each, WORDS.as_pointer()) for each in (panel, following))
        entry, loop = builder.block, builder.append_basic_block("pairs")
        done = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = phi(builder, LONG, ir.Constant(LONG, 0), entry)
        zero = ir.Constant(SUMS, [0.0] * LANES)
        first = [phi(builder, SUMS, zero, entry) for _ in range(rows * self.vectors)]
        sums: list[Any] = list(first)
        unroll = next(count for count in (4, 2, 1) if self.pairs % count == 0)
        for step in range(unroll):
            pair = builder.add(at, ir.Constant(LONG, step))
            self._add_pair(builder, rows, inputs, weights, later, pair, sums)
        following = builder.add(at, ir.Constant(LONG, unroll))
        for carried, value in zip((at, *first), (following, *sums), strict=True):
            carried.add_incoming(value, loop)
        more = builder.icmp_signed("<", following, ir.Constant(LONG, self.pairs))
        builder.cbranch(more, loop, done)
        builder.position_at_end(done)
        sums = add_bias(builder, sums, self.vectors, bias)
        keep(builder, sums, self.vectors, target, self.target_stride, wide=self.wide)

    def _add_pair(
        self, builder: Any, rows: int, inputs: Any, weights: Any, later: Any, pair: Any, sums: list[Any]
    ) -> None:
        place = builder.mul(pair, ir.Constant(LONG, self.vectors))
        vectors = [load(builder, weights, place, each, 64) for each in range(self.vectors)]
        for each in range(self.vectors):
            ask_for(builder, later, place, each)
        multiply_add = _multiply_add if self.narrow else _multiply_add_wide
        for row in range(rows):
            both = spread(builder, load(builder, inputs, pair, row * self.source_stride, 4))
            for each, vector in enumerate(vectors, row * self.vectors):
                sums[each] = multiply_add(builder, sums[each], both, vector)


def _multiply_add(builder: Any, sums: Any, inputs: Any, weights: Any) -> Any:
    """Pairs of bf16."""
    if multiplies_bfloat16():
        kind = ir.FunctionType(SUMS, [SUMS, _BFLOATS, _BFLOATS])
        instruction = declared(builder, "llvm.x86.avx512bf16.dpbf16ps.512", kind)
        pairs = [builder.bitcast(each, _BFLOATS) for each in (inputs, weights)]
        return builder.call(instruction, [sums, *pairs])
    for half in (_low, _high):
        sums = _multiply_add_wide(builder, sums, half(builder, inputs), half(builder, weights))
    return sums


def _multiply_add_wide(builder: Any, sums: Any, inputs: Any, weights: Any) -> Any:
    """Numbers in fp32."""
    factors = [builder.bitcast(each, SUMS) for each in (inputs, weights)]
    return builder.fadd(sums, builder.fmul(*factors, flags=("contract",)), flags=("contract",))


def _low(builder: Any, pairs: Any) -> Any:
    return builder.shl(pairs, all_lanes(16))


def _high(builder: Any, pairs: Any) -> Any:
    return builder.and_(pairs, all_lanes(0xFFFF0000))
