"""Kernels that work on each token's row alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from services.worker.engine.torch.compiled.jit import (
    F32,
    FLOAT32,
    exp,
    kernel,
    load,
    next_unit,
    store,
    store_byte,
)

ROWS_A_UNIT = 8


def compile_norm(kind: int, width: int, eps: float) -> Any:
    """Adds a residual, then the root-mean-square norm. args: hidden, delta, weight, output, rows.

    hidden, delta, output: [rows, width], delta may be null; hidden takes the sum; weight: [width].
    """
    least = F32(eps)

    @kernel
    def add_norm(args: Any) -> None:
        a = carray(args, (7,))
        units, hidden, delta, weight, output, rows = a[1], a[2], a[3], a[4], a[5], a[6]
        unit = next_unit(args)
        while unit < units:
            for row in range(unit * ROWS_A_UNIT, min((unit + 1) * ROWS_A_UNIT, rows)):
                begin = row * width
                if delta != 0:
                    for i in range(width):
                        store(
                            kind,
                            hidden,
                            begin + i,
                            load(kind, hidden, begin + i) + load(kind, delta, begin + i),
                        )
                squares = F32(0.0)
                for i in range(width):
                    squares += load(kind, hidden, begin + i) * load(kind, hidden, begin + i)
                factor = F32(1.0) / F32(math.sqrt(squares / F32(width) + least))
                for i in range(width):
                    store(
                        kind,
                        output,
                        begin + i,
                        load(kind, hidden, begin + i) * factor * load(kind, weight, i),
                    )
            unit = next_unit(args)

    return add_norm


def compile_gate(kind: int, width: int) -> Any:
    """silu(gate) * up. args: gate and up side by side [rows, 2 width], output [rows, width], rows."""

    @kernel
    def gate(args: Any) -> None:
        a = carray(args, (5,))
        units, source, output, rows = a[1], a[2], a[3], a[4]
        unit = next_unit(args)
        while unit < units:
            for row in range(unit * ROWS_A_UNIT, min((unit + 1) * ROWS_A_UNIT, rows)):
                gates, ups, to = row * 2 * width, (row * 2 + 1) * width, row * width
                for i in range(width):
                    x = load(kind, source, gates + i)
                    store(kind, output, to + i, x / (F32(1.0) + exp(-x)) * load(kind, source, ups + i))
            unit = next_unit(args)

    return gate


def compile_quantise(kind: int) -> Any:
    """Each row in 8 bits around 128, by a scale of its own. args: source, bytes, scales fp32, rows, width.

    A row that is not finite gets a scale that is not finite, so that its request still fails alone.
    """

    @kernel
    def quantise(args: Any) -> None:
        a = carray(args, (7,))
        units, source, output, scales, rows, width = a[1], a[2], a[3], a[4], a[5], a[6]
        unit = next_unit(args)
        while unit < units:
            for row in range(unit * ROWS_A_UNIT, min((unit + 1) * ROWS_A_UNIT, rows)):
                begin = row * width
                most, total = F32(1e-30), F32(0.0)
                for i in range(width):
                    size = abs(load(kind, source, begin + i))
                    most = size if size > most else most
                    total += size
                store(FLOAT32, scales, row, most / F32(127.0) + total * F32(0.0))
                steps = F32(127.0) / most
                for i in range(width):
                    store_byte(
                        output,
                        begin + i,
                        np.uint8(np.int32(load(kind, source, begin + i) * steps + F32(128.5))),
                    )
            unit = next_unit(args)

    return quantise
