"""Rows in 8 bits by parts, laid out as `int8_tile` reads them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from services.worker.engine.torch.compiled.int8_tile import MIDDLE, PART, ROW_PART
from services.worker.engine.torch.compiled.jit import FLOAT32, kernel, next_unit
from services.worker.engine.torch.compiled.vectors import (
    LANES,
    LONG,
    SUMS,
    WORD,
    WORDS,
    all_lanes,
    declared,
    load,
    spread,
)

ROWS_A_UNIT = 32  # a few microseconds: waking a thread for less takes longer
_BYTES, _HALVES = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES)
_FLOAT = ir.FloatType()
_LEAST = 0x0DA24260  # 1e-30 in fp32: what a part of zeros is divided by


def compile_quantise_parts(kind: int) -> Any:
    """args: source, output, rows, parts of a row. A part that is not finite gets a scale that is not."""
    size = 4 * PART if kind == FLOAT32 else 2 * PART

    @kernel
    def quantise_parts(args: Any) -> None:
        a = carray(args, (6,))
        units, source, output, rows, parts = a[1], a[2], a[3], a[4], a[5]
        unit = next_unit(args)
        while unit < units:
            for part in range(unit * ROWS_A_UNIT * parts, min((unit + 1) * ROWS_A_UNIT, rows) * parts):
                _quantise_part(kind, source + part * size, output + part * ROW_PART)
            unit = next_unit(args)

    return quantise_parts


@intrinsic(prefer_literal=True)
def _quantise_part(_typing: Any, kind: Any, source: Any, target: Any) -> Any:
    """One part from an address to another."""
    wide = kind.literal_value == FLOAT32

    def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        _Part(builder, wide=wide).quantise(*values[1:])
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64), codegen


class _Part:
    def __init__(self, builder: Any, *, wide: bool) -> None:
        self._builder = builder
        self._wide = wide

    def quantise(self, source: Any, target: Any) -> None:
        builder = self._builder
        numbers = [self._number(source, vector) for vector in range(PART // LANES)]
        most = self._most(numbers)
        limit = ir.Constant(_FLOAT, 127.0)
        steps = spread(builder, builder.bitcast(builder.fdiv(limit, most), WORD))
        whole = [self._whole(builder.fmul(each, builder.bitcast(steps, SUMS))) for each in numbers]
        for vector, each in enumerate(whole):
            self._store(builder.trunc(each, _BYTES), target, vector * LANES)
        lower = builder.mul(self._reduced("add", whole), ir.Constant(WORD, -MIDDLE))
        self._store(lower, target, PART)
        self._store(builder.fdiv(most, limit), target, PART + 4)

    def _number(self, source: Any, vector: int) -> Any:
        """Sixteen inputs in fp32."""
        builder, zero = self._builder, ir.Constant(LONG, 0)
        if self._wide:
            return load(builder, builder.inttoptr(source, SUMS.as_pointer()), zero, vector, 4)
        halves = load(builder, builder.inttoptr(source, _HALVES.as_pointer()), zero, vector, 2)
        return builder.bitcast(builder.shl(builder.zext(halves, WORDS), all_lanes(16)), SUMS)

    def _most(self, numbers: list[Any]) -> Any:
        """The largest size. As bits what is not finite is larger than any number; so it wins, and stays."""
        builder = self._builder
        words = [builder.and_(builder.bitcast(each, WORDS), all_lanes(0x7FFFFFFF)) for each in numbers]
        most = all_lanes(_LEAST)
        for each in words:
            most = builder.select(builder.icmp_unsigned(">", each, most), each, most)
        return builder.bitcast(self._reduced("umax", [most]), _FLOAT)

    def _whole(self, numbers: Any) -> Any:
        """To the nearest whole numbers, ties to even."""
        kind = ir.FunctionType(WORDS, [SUMS])
        return self._builder.call(declared(self._builder, "llvm.lrint.v16i32.v16f32", kind), [numbers])

    def _reduced(self, by: str, vectors: list[Any]) -> Any:
        """All lanes of all vectors in one word."""
        total = vectors[0]
        for each in vectors[1:]:
            total = self._builder.add(total, each)
        kind = ir.FunctionType(WORD, [WORDS])
        return self._builder.call(declared(self._builder, f"llvm.vector.reduce.{by}.v16i32", kind), [total])

    def _store(self, value: Any, target: Any, distance: int) -> None:
        address = self._builder.add(target, ir.Constant(LONG, distance))
        self._builder.store(value, self._builder.inttoptr(address, value.type.as_pointer())).align = 1
