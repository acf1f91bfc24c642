"""Pieces of LLVM IR that the tiles are written in: vectors of sixteen, memory by address and distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

LANES = 16
WORD, LONG = ir.IntType(32), ir.IntType(64)
SUMS, WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(WORD, LANES)
_HALF = ir.IntType(16)


def by_rows(builder: Any, rows: Any, most: int, emit: Callable[[int], None]) -> None:
    """One piece of code for each count of rows, 1 to most."""
    after = builder.append_basic_block("multiplied")
    choice = builder.switch(rows, after)
    for count in range(1, most + 1):
        block = builder.append_basic_block(f"rows{count}")
        choice.add_case(ir.Constant(LONG, count), block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(after)
    builder.position_at_end(after)


def add_bias(builder: Any, sums: list[Any], vectors: int, bias: Any) -> list[Any]:
    """Sums of rows, so many vectors each, with fp32 numbers at an address added unless that is null."""
    entry = builder.block
    with builder.if_then(builder.icmp_signed("!=", bias, ir.Constant(LONG, 0))):
        place = builder.inttoptr(bias, SUMS.as_pointer())
        zero = ir.Constant(LONG, 0)
        biases = [load(builder, place, zero, each, 4) for each in range(vectors)]
        added = [builder.fadd(total, biases[each % vectors]) for each, total in enumerate(sums)]
        inside = builder.block
    merged = []
    for total, other in zip(sums, added, strict=True):
        merged.append(phi(builder, SUMS, total, entry))
        merged[-1].add_incoming(other, inside)
    return merged


def keep(builder: Any, sums: list[Any], vectors: int, target: Any, stride: int, *, wide: bool) -> None:
    """Writes rows of sums, so many vectors each, `stride` numbers apart: in fp32 if wide, else in bf16."""
    size = 4 if wide else 2
    for index, total in enumerate(sums):
        row, vector = divmod(index, vectors)
        value = total if wide else _narrow(builder, total)
        address = builder.add(target, ir.Constant(LONG, (row * stride + vector * LANES) * size))
        builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = size


def phi(builder: Any, kind: Any, start: Any, entry: Any) -> Any:
    """A value that a loop carries."""
    value = builder.phi(kind)
    value.add_incoming(start, entry)
    return value


def load(builder: Any, base: Any, index: Any, distance: int, align: int) -> Any:
    """What lies at an index plus a constant distance."""
    value = builder.load(builder.gep(base, [builder.add(index, ir.Constant(LONG, distance))]))
    value.align = align
    return value


def spread(builder: Any, word: Any) -> Any:
    """A word in all lanes."""
    nothing = ir.Constant(WORDS, ir.Undefined)
    one = builder.insert_element(nothing, word, ir.Constant(WORD, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(WORDS, [0] * LANES))


def ask_for(builder: Any, base: Any, index: Any, distance: int) -> None:
    """Has a line brought near that is read soon. An address past the end does no harm."""
    byte = ir.IntType(8).as_pointer()
    prefetch = declared(builder, "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [byte, WORD, WORD, WORD]))
    address = builder.gep(base, [builder.add(index, ir.Constant(LONG, distance))])
    read, near, data = (ir.Constant(WORD, value) for value in (0, 3, 1))
    builder.call(prefetch, [builder.bitcast(address, byte), read, near, data])


def declared(builder: Any, name: str, kind: Any) -> Any:
    """A function of LLVM's own."""
    known = builder.module.globals.get(name)
    return ir.Function(builder.module, kind, name) if known is None else known


def all_lanes(value: int) -> Any:
    """A constant in all lanes."""
    return ir.Constant(WORDS, [value] * LANES)


def _narrow(builder: Any, sums: Any) -> Any:
    """To bf16: to the nearest, ties to even. NaN stays NaN, as in `jit.store`."""
    bits = builder.bitcast(sums, WORDS)
    odd = builder.and_(builder.lshr(bits, all_lanes(16)), all_lanes(1))
    rounded = builder.add(bits, builder.add(odd, all_lanes(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, all_lanes(16)), ir.VectorType(_HALF, LANES))
