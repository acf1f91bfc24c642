"""Products of a few rows in 8 bits with a panel in 8 bits, by groups of inputs with scales of their own.

A panel is 32 columns wide, its groups one after the other: 32 scales, then the weights, of each four inputs
side by side, so that one instruction multiplies four inputs with sixteen columns (AVX512-VNNI). It takes
bytes from 0 to 255 times bytes from -128 to 127: weights are moved up by 128, so a row's sums begin lower by
128 times the sum of its inputs, which is kept with the row. Inputs vary more than weights: two parts of a
group have scales of their own. Sums of a part are exact; they are scaled and added in fp32, part by part in
their order: a row's result does not depend on how many there are.

    part of a row      32 inputs int8 | where sums begin int32 | scale fp32
    group of a panel   32 scales fp32 | 16 x 32 x 4 weights uint8, moved up by 128
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
    ask_for,
    by_rows,
    declared,
    keep,
    load,
    phi,
    spread,
)

GROUP = 64  # inputs for which a weight has one scale
PART = 32  # inputs of a row with one scale
VECTORS = 2  # of a panel
WIDTH = VECTORS * LANES  # outputs of a panel
MOST_ROWS = 6  # of a tile: 12 sums of a part and 12 of all, two vectors of weights, two of scales, an input
ROW_PART = PART + 8  # bytes
PANEL_GROUP = WIDTH * (4 + GROUP)  # bytes
MIDDLE = 128  # the byte that stands for 0 in a weight

_PARTS = GROUP // PART
_QUADS = PART // 4
_PART_WORDS = ROW_PART // 4
_ROW_WORDS = _PARTS * _PART_WORDS  # of a group
_PANEL_VECTORS = PANEL_GROUP // (4 * LANES)


@cache
def multiplies_int8() -> bool:
    """Whether this CPU has the instruction."""
    return bool(binding.get_host_cpu_features().get("avx512vnni"))


@intrinsic(prefer_literal=True)
def multiply_int8(
    _typing: Any,
    groups: Any,
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

    Literals: groups of a row; kind of the target; numbers from one of its rows to the next. Then addresses:
    source and panel as above, what is read after it (brought near meanwhile), bias fp32 [columns], target;
    rows: 1 to MOST_ROWS.
    """
    tile = _Tile(
        groups=groups.literal_value,
        target_stride=target_stride.literal_value,
        wide=target_kind.literal_value == FLOAT32,
    )

    def codegen(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        by_rows(builder, values[8], MOST_ROWS, lambda count: tile.emit(builder, count, *values[3:8]))
        return context.get_dummy_value()

    return types.void(groups, target_kind, target_stride, *[types.int64] * 6), codegen


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """Code of a tile, as in `tile`."""

    groups: int
    target_stride: int  # numbers
    wide: bool  # the target is fp32

    def emit(
        self, builder: Any, rows: int, source: Any, panel: Any, following: Any, bias: Any, target: Any
    ) -> None:
        """Sums over all groups, then bias and target."""
        inputs = builder.inttoptr(source, WORD.as_pointer())
        weights, later = (builder.inttoptr(each, WORDS.as_pointer()) for each in (panel, following))
        entry, loop = builder.block, builder.append_basic_block("groups")
        done = builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        group = phi(builder, LONG, ir.Constant(LONG, 0), entry)
        zero = ir.Constant(SUMS, [0.0] * LANES)
        before = [phi(builder, SUMS, zero, entry) for _ in range(rows * VECTORS)]
        reader = _Group(builder, inputs, weights, later, group, rows=rows, stride=self.groups * _ROW_WORDS)
        sums = reader.add_to(before)
        after = builder.add(group, ir.Constant(LONG, 1))
        for carried, value in zip((group, *before), (after, *sums), strict=True):
            carried.add_incoming(value, loop)
        more = builder.icmp_signed("<", after, ir.Constant(LONG, self.groups))
        builder.cbranch(more, loop, done)
        builder.position_at_end(done)
        sums = add_bias(builder, sums, VECTORS, bias)
        keep(builder, sums, VECTORS, target, self.target_stride, wide=self.wide)


class _Group:
    """One group of some rows and of a panel."""

    def __init__(
        self, builder: Any, inputs: Any, weights: Any, later: Any, group: Any, *, rows: int, stride: int
    ) -> None:
        self._builder = builder
        self._inputs, self._weights, self._later = inputs, weights, later
        self._row_at = builder.mul(group, ir.Constant(LONG, _ROW_WORDS))
        self._panel_at = builder.mul(group, ir.Constant(LONG, _PANEL_VECTORS))
        self._rows = range(rows)
        self._stride = stride  # words from one row to the next

    def add_to(self, sums: list[Any]) -> list[Any]:
        """Sums with this group's added."""
        scales = [self._floats(vector) for vector in self._panel(0)]
        for part in range(_PARTS):
            sums = self._with_part(part, scales, sums)
        return sums

    def _with_part(self, part: int, scales: list[Any], sums: list[Any]) -> list[Any]:
        whole = self._sums(part)
        added = []
        for row in self._rows:
            scale = self._floats(self._input(row, part, _QUADS + 1))
            for each, own in enumerate(scales, row * VECTORS):
                number = self._builder.sitofp(whole[each], SUMS)
                added.append(_fused(self._builder, self._builder.fmul(number, own), scale, sums[each]))
        return added

    def _sums(self, part: int) -> list[Any]:
        """In whole numbers, of each row and vector."""
        sums = [begin for row in self._rows for begin in [self._input(row, part, _QUADS)] * VECTORS]
        for quad in range(_QUADS):
            self._add_quad(part, quad, sums)
        return sums

    def _add_quad(self, part: int, quad: int, sums: list[Any]) -> None:
        vectors = self._panel(VECTORS * (1 + part * _QUADS + quad))
        for row in self._rows:
            four = self._input(row, part, quad)
            for each, vector in enumerate(vectors, row * VECTORS):
                sums[each] = _multiply_add(self._builder, sums[each], vector, four)

    def _input(self, row: int, part: int, word: int) -> Any:
        """A word of a part of a row's group, in all lanes."""
        distance = row * self._stride + part * _PART_WORDS + word
        return spread(self._builder, load(self._builder, self._inputs, self._row_at, distance, 4))

    def _panel(self, first: int) -> list[Any]:
        """Vectors of the panel's group; what lies as far in what follows is asked for."""
        places = range(first, first + VECTORS)
        for place in places:
            ask_for(self._builder, self._later, self._panel_at, place)
        return [load(self._builder, self._weights, self._panel_at, place, 64) for place in places]

    def _floats(self, words: Any) -> Any:
        return self._builder.bitcast(words, SUMS)


def _multiply_add(builder: Any, sums: Any, weights: Any, inputs: Any) -> Any:
    """Four bytes in each lane."""
    kind = ir.FunctionType(WORDS, [WORDS, WORDS, WORDS])
    return builder.call(declared(builder, "llvm.x86.avx512.vpdpbusd.512", kind), [sums, weights, inputs])


def _fused(builder: Any, one: Any, other: Any, sums: Any) -> Any:
    """one * other + sums, rounded once, whatever the compiler may fuse elsewhere."""
    kind = ir.FunctionType(SUMS, [SUMS, SUMS, SUMS])
    return builder.call(declared(builder, "llvm.fma.v16f32", kind), [one, other, sums])
