"""Products of a few rows with a panel, in registers: what LLVM does not find by itself.

A panel is 16 or 32 columns wide; of each pair of inputs its numbers lie side by side, so that one instruction
multiplies two inputs with sixteen columns (AVX512-BF16; other CPUs widen them first). In fp32 a "pair" is one
input. Sums are fp32, over the inputs in their order: a row's result does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from services.worker.engine.torch.compiled.jit import FLOAT32

LANES = 16
MOST_ROWS = 12  # of a tile: 24 sums, two vectors of a panel and an input are what registers hold

_WORD, _LONG, _HALF = ir.IntType(32), ir.IntType(64), ir.IntType(16)
_SUMS, _PAIRS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_WORD, LANES)


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
        _by_rows(builder, values[11], lambda count: tile.emit(builder, count, *values[6:11]))
        return context.get_dummy_value()

    literals = (kind, inputs, source_stride, vectors, target_kind, target_stride)
    return types.void(*literals, *[types.int64] * 6), codegen


def _by_rows(builder: Any, rows: Any, emit: Callable[[int], None]) -> None:
    """One piece of code for each count of rows."""
    after = builder.append_basic_block("multiplied")
    choice = builder.switch(rows, after)
    for count in range(1, MOST_ROWS + 1):
        block = builder.append_basic_block(f"rows{count}")
        choice.add_case(ir.Constant(_LONG, count), block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(after)
    builder.position_at_end(after)


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
        inputs = builder.inttoptr(source, _WORD.as_pointer())
        weights, later = (builder.inttoptr(each, _PAIRS.as_pointer()) for each in (panel, following))
        entry, loop = builder.block, builder.append_basic_block("pairs")
        done = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = _phi(builder, _LONG, ir.Constant(_LONG, 0), entry)
        zero = ir.Constant(_SUMS, [0.0] * LANES)
        first = [_phi(builder, _SUMS, zero, entry) for _ in range(rows * self.vectors)]
        sums: list[Any] = list(first)
        unroll = next(count for count in (4, 2, 1) if self.pairs % count == 0)
        for step in range(unroll):
            pair = builder.add(at, ir.Constant(_LONG, step))
            self._add_pair(builder, rows, inputs, weights, later, pair, sums)
        following = builder.add(at, ir.Constant(_LONG, unroll))
        for phi, value in zip((at, *first), (following, *sums), strict=True):
            phi.add_incoming(value, loop)
        more = builder.icmp_signed("<", following, ir.Constant(_LONG, self.pairs))
        builder.cbranch(more, loop, done)
        builder.position_at_end(done)
        self._keep(builder, self._with_bias(builder, sums, bias), target)

    def _add_pair(
        self, builder: Any, rows: int, inputs: Any, weights: Any, later: Any, pair: Any, sums: list[Any]
    ) -> None:
        place = builder.mul(pair, ir.Constant(_LONG, self.vectors))
        vectors = [_load(builder, weights, place, each, 64) for each in range(self.vectors)]
        for each in range(self.vectors):
            _ask_for(builder, later, place, each)
        multiply_add = _multiply_add if self.narrow else _multiply_add_wide
        for row in range(rows):
            both = _spread(builder, _load(builder, inputs, pair, row * self.source_stride, 4))
            for each, vector in enumerate(vectors, row * self.vectors):
                sums[each] = multiply_add(builder, sums[each], both, vector)

    def _with_bias(self, builder: Any, sums: list[Any], bias: Any) -> list[Any]:
        entry = builder.block
        with builder.if_then(builder.icmp_signed("!=", bias, ir.Constant(_LONG, 0))):
            place = builder.inttoptr(bias, _SUMS.as_pointer())
            zero = ir.Constant(_LONG, 0)
            vectors = [_load(builder, place, zero, each, 4) for each in range(self.vectors)]
            added = [builder.fadd(total, vectors[each % self.vectors]) for each, total in enumerate(sums)]
            inside = builder.block
        merged = []
        for total, other in zip(sums, added, strict=True):
            phi = _phi(builder, _SUMS, total, entry)
            phi.add_incoming(other, inside)
            merged.append(phi)
        return merged

    def _keep(self, builder: Any, sums: list[Any], target: Any) -> None:
        size = 4 if self.wide else 2
        for index, total in enumerate(sums):
            row, vector = divmod(index, self.vectors)
            distance = (row * self.target_stride + vector * LANES) * size
            value = total if self.wide else _narrow(builder, total)
            address = builder.add(target, ir.Constant(_LONG, distance))
            builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = size


def _phi(builder: Any, kind: Any, start: Any, entry: Any) -> Any:
    phi = builder.phi(kind)
    phi.add_incoming(start, entry)
    return phi


def _load(builder: Any, base: Any, index: Any, distance: int, align: int) -> Any:
    value = builder.load(builder.gep(base, [builder.add(index, ir.Constant(_LONG, distance))]))
    value.align = align
    return value


def _spread(builder: Any, word: Any) -> Any:
    nothing = ir.Constant(_PAIRS, ir.Undefined)
    one = builder.insert_element(nothing, word, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_PAIRS, [0] * LANES))


def _multiply_add(builder: Any, sums: Any, inputs: Any, weights: Any) -> Any:
    """Pairs of bf16."""
    if multiplies_bfloat16():
        kind = ir.FunctionType(_SUMS, [_SUMS, _BFLOATS, _BFLOATS])
        instruction = _declared(builder, "llvm.x86.avx512bf16.dpbf16ps.512", kind)
        pairs = [builder.bitcast(each, _BFLOATS) for each in (inputs, weights)]
        return builder.call(instruction, [sums, *pairs])
    for half in (_low, _high):
        sums = _multiply_add_wide(builder, sums, half(builder, inputs), half(builder, weights))
    return sums


def _multiply_add_wide(builder: Any, sums: Any, inputs: Any, weights: Any) -> Any:
    """Numbers in fp32."""
    factors = [builder.bitcast(each, _SUMS) for each in (inputs, weights)]
    return builder.fadd(sums, builder.fmul(*factors, flags=("contract",)), flags=("contract",))


def _low(builder: Any, pairs: Any) -> Any:
    return builder.shl(pairs, _all_lanes(16))


def _high(builder: Any, pairs: Any) -> Any:
    return builder.and_(pairs, _all_lanes(0xFFFF0000))


def _ask_for(builder: Any, base: Any, index: Any, distance: int) -> None:
    """Has a line brought near that is read soon. An address past the end does no harm."""
    byte = ir.IntType(8).as_pointer()
    prefetch = _declared(
        builder, "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
    )
    address = builder.gep(base, [builder.add(index, ir.Constant(_LONG, distance))])
    read, keep, data = (ir.Constant(_WORD, value) for value in (0, 3, 1))
    builder.call(prefetch, [builder.bitcast(address, byte), read, keep, data])


def _declared(builder: Any, name: str, kind: Any) -> Any:
    known = builder.module.globals.get(name)
    return ir.Function(builder.module, kind, name) if known is None else known


def _narrow(builder: Any, sums: Any) -> Any:
    """To bf16: to the nearest, ties to even. NaN stays NaN, as in `jit.store`."""
    bits = builder.bitcast(sums, _PAIRS)
    odd = builder.and_(builder.lshr(bits, _all_lanes(16)), _all_lanes(1))
    rounded = builder.add(bits, builder.add(odd, _all_lanes(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, _all_lanes(16)), ir.VectorType(_HALF, LANES))


def _all_lanes(value: int) -> Any:
    return ir.Constant(_PAIRS, [value] * LANES)
