"""Products of a few rows with a panel of weights, in registers: what LLVM does not find by itself.

A panel is WIDTH outputs wide: of each pair of inputs, the weights of these outputs lie side by side, so that
one instruction multiplies two inputs with sixteen outputs (AVX512-BF16). Sums are fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from services.worker.engine.torch.compiled.jit import FLOAT32

LANES = 16
VECTORS = 2
WIDTH = LANES * VECTORS  # outputs of a panel
MOST_ROWS = 12  # of a tile: 24 sums, two vectors of weights and an input are what registers hold
_FEW_ROWS = 2  # a tile this small reads as fast as memory gives: more is asked for by hand only above
_AHEAD = 128  # pairs of inputs that the memory is asked for in advance: one page is as far as a CPU looks

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


@intrinsic(prefer_literal=True)
def multiply(
    _typing: Any,
    width: Any,
    stride: Any,
    kind: Any,
    source: Any,
    panel: Any,
    bias: Any,
    target: Any,
    rows: Any,
) -> Any:
    """Rows of a source times a panel, plus a bias unless that is null.

    Literals: inputs of a row; outputs from one row of the target to the next; kind of the target. Then
    addresses: source bf16 [rows, width], panel, bias fp32 [WIDTH], target; rows: 1 to MOST_ROWS.
    """
    tile = _Tile(width.literal_value, stride.literal_value, wide=kind.literal_value == FLOAT32)

    def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        _by_rows(builder, values[7], lambda count: tile.emit(builder, count, *values[3:7]))
        return context.get_dummy_value()

    long = types.int64
    return types.void(width, stride, kind, long, long, long, long, long), codegen


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


class _Tile:
    """Code of a tile. Distances are constants: there are too few registers for an address of each row."""

    def __init__(self, width: int, stride: int, *, wide: bool) -> None:
        self._pairs = width // 2
        self._stride = stride
        self._wide = wide
        self._unroll = next(count for count in (4, 2, 1) if self._pairs % count == 0)

    def emit(self, builder: Any, rows: int, source: Any, panel: Any, bias: Any, target: Any) -> None:
        """Sums over all inputs, then bias and target."""
        inputs = builder.inttoptr(source, _WORD.as_pointer())
        weights = builder.inttoptr(panel, _PAIRS.as_pointer())
        entry, loop = builder.block, builder.append_basic_block("pairs")
        done = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = _phi(builder, _LONG, ir.Constant(_LONG, 0), entry)
        first = [
            _phi(builder, _SUMS, ir.Constant(_SUMS, [0.0] * LANES), entry) for _ in range(rows * VECTORS)
        ]
        sums: list[Any] = list(first)
        for step in range(self._unroll):
            pair = builder.add(at, ir.Constant(_LONG, step))
            self._add_pair(builder, rows, inputs, weights, pair, sums)
        following = builder.add(at, ir.Constant(_LONG, self._unroll))
        for phi, value in zip((at, *first), (following, *sums), strict=True):
            phi.add_incoming(value, loop)
        more = builder.icmp_signed("<", following, ir.Constant(_LONG, self._pairs))
        builder.cbranch(more, loop, done)
        builder.position_at_end(done)
        self._keep(builder, _with_bias(builder, sums, bias), target)

    def _add_pair(
        self, builder: Any, rows: int, inputs: Any, weights: Any, pair: Any, sums: list[Any]
    ) -> None:
        place = builder.mul(pair, ir.Constant(_LONG, VECTORS))
        vectors = [_load(builder, weights, place, each, 64) for each in range(VECTORS)]
        if rows > _FEW_ROWS:
            for each in range(VECTORS):
                _ask_for(builder, weights, place, each + _AHEAD * VECTORS)
        for row in range(rows):
            both = _spread(builder, _load(builder, inputs, pair, row * self._pairs, 4))
            for each, vector in enumerate(vectors, row * VECTORS):
                sums[each] = _multiply_add(builder, sums[each], both, vector)

    def _keep(self, builder: Any, sums: list[Any], target: Any) -> None:
        size = 4 if self._wide else 2
        for index, total in enumerate(sums):
            row, vector = divmod(index, VECTORS)
            distance = (row * self._stride + vector * LANES) * size
            value = total if self._wide else _narrow(builder, total)
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
    kind = ir.FunctionType(_SUMS, [_SUMS, _BFLOATS, _BFLOATS])
    instruction = _declared(builder, "llvm.x86.avx512bf16.dpbf16ps.512", kind)
    return builder.call(
        instruction, [sums, builder.bitcast(inputs, _BFLOATS), builder.bitcast(weights, _BFLOATS)]
    )


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


def _with_bias(builder: Any, sums: list[Any], bias: Any) -> list[Any]:
    entry = builder.block
    with builder.if_then(builder.icmp_signed("!=", bias, ir.Constant(_LONG, 0))):
        place = builder.inttoptr(bias, _SUMS.as_pointer())
        zero = ir.Constant(_LONG, 0)
        vectors = [_load(builder, place, zero, each, 4) for each in range(VECTORS)]
        added = [builder.fadd(total, vectors[each % VECTORS]) for each, total in enumerate(sums)]
        inside = builder.block
    merged = []
    for total, other in zip(sums, added, strict=True):
        phi = _phi(builder, _SUMS, total, entry)
        phi.add_incoming(other, inside)
        merged.append(phi)
    return merged


def _narrow(builder: Any, sums: Any) -> Any:
    """To bf16: to the nearest, ties to even. NaN stays NaN, as in `jit.store`."""

    def all_lanes(value: int) -> Any:
        return ir.Constant(_PAIRS, [value] * LANES)

    bits = builder.bitcast(sums, _PAIRS)
    odd = builder.and_(builder.lshr(bits, all_lanes(16)), all_lanes(1))
    rounded = builder.add(bits, builder.add(odd, all_lanes(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, all_lanes(16)), ir.VectorType(_HALF, LANES))
