"""x W^T + b for CPUs with vectors of 512 bits: a layout of our own, read once a step at memory's pace.

Products of few rows wait for memory, so a tile reads each weight once for up to twelve rows and asks for the
next in advance. A row's product does not depend on how many there are; torch's does in the last bits, in fp32
too. Measured on one Zen 5 core over all matrices of a 60M Llama in bf16, against oneDNN's prepacked products:
2.2 to 2.8 ms for one row, 3.8 to 5.4 for 16, 14.6 to 15.9 for 128, 58 to 59 for 512. In fp32 on one Zen 4
core, 3072 x 576 against torch: 68 to 98 us for one row, 229 to 656 for 16, 1.8 to 4.6 ms for 128.
"""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import binding
from numba import carray
from torch.nn import functional

from services.worker.engine.torch.compiled.jit import BFLOAT16, FLOAT32, kernel, next_unit
from services.worker.engine.torch.compiled.team import Kernel, Team, kernel_of
from services.worker.engine.torch.compiled.tile import MOST_ROWS, multiplies_bfloat16, multiply, pair_of
from services.worker.engine.torch.compiled.vectors import LANES

VECTORS = 2
WIDTH = VECTORS * LANES  # outputs of a panel
AHEAD = 16384  # bytes
_ALIGNMENT = 64  # bytes
UNITS_A_THREAD = 8  # long runs of memory, and still little to wait for when a neighbour takes a core


def compile_product(inputs: int, outputs: int, kind: int, source_kind: int) -> Any:
    """args: source, panels, bias, target, rows, grain. A unit is as many panels as the grain, for all rows.

    source: [rows, inputs]; panels: see `tile`; bias: fp32 [outputs] or null; target: [rows, outputs].
    """
    size, source_size = _size(kind), _size(source_kind)

    @kernel
    def product(args: Any) -> None:
        a = carray(args, (8,))
        units, source, panels, biases, target, rows, grain = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        unit = next_unit(args)
        while unit < units:
            for index in range(unit * grain, min((unit + 1) * grain, outputs // WIDTH)):
                panel = panels + index * WIDTH * inputs * source_size
                bias = biases + index * WIDTH * 4 if biases != 0 else biases
                begin = target + index * WIDTH * size
                blocks = (rows + MOST_ROWS - 1) // MOST_ROWS
                row = 0
                while row < rows:
                    count = (rows - row + blocks - 1) // blocks
                    multiply(
                        source_kind,
                        inputs,
                        inputs,
                        VECTORS,
                        kind,
                        outputs,
                        source + row * inputs * source_size,
                        panel,
                        panel + AHEAD,
                        bias,
                        begin + row * outputs * size,
                        count,
                    )
                    row += count
                    blocks -= 1
            unit = next_unit(args)

    return product


def can_multiply(kind: int = BFLOAT16) -> bool:
    """Whether this CPU is better served with these than with oneDNN's: it multiplies so many numbers at once,
    and for bf16 it has no units for whole matrices."""
    features = binding.get_host_cpu_features()
    if kind == FLOAT32:
        return bool(features.get("avx512f"))
    return multiplies_bfloat16() and not features.get("amx-bf16")


class Products:
    """Makes linears, with one kernel for all matrices of a shape."""

    def __init__(self, team: Team, kind: int = BFLOAT16) -> None:
        self._team = team
        self._kind = kind  # of inputs and weights
        self._compiled: dict[tuple[int, int, int], tuple[Any, Kernel]] = {}

    def can_take(self, inputs: int) -> bool:
        """Whether a matrix of so many inputs can be cut into panels, the last one not whole."""
        return inputs % pair_of(self._kind) == 0

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool) -> ProductLinear:
        """weight: [out, in] whose inputs it can take; wide: answer in fp32."""
        outputs, inputs = weight.shape
        shape = inputs, -(-outputs // WIDTH) * WIDTH, FLOAT32 if wide else self._kind
        if shape not in self._compiled:
            compiled = compile_product(*shape, self._kind)
            self._compiled[shape] = compiled, kernel_of(compiled)  # the code must outlive the kernel
        return ProductLinear(self._team, self._compiled[shape][1], weight, bias, wide=wide)


class ProductLinear:
    """One matrix; see `Linear`. Inputs are contiguous, in the weight's dtype."""

    def __init__(
        self, team: Team, kernel: Kernel, weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool
    ) -> None:
        self._team = team
        self._kernel = kernel
        self._outputs = len(weight)
        self._missing = -self._outputs % WIDTH
        self._padded = self._outputs + self._missing
        self._grain = max(1, self._padded // WIDTH // (UNITS_A_THREAD * team.threads))
        self._dtype = torch.float32 if wide else weight.dtype
        self._panels = _panels(functional.pad(weight, (0, 0, 0, self._missing)))
        self._bias = None if bias is None else functional.pad(bias.float(), (0, self._missing))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output = torch.empty(len(x), self._padded, dtype=self._dtype)
        self._team.run(
            self._kernel,
            -(-(self._padded // WIDTH) // self._grain),
            x.data_ptr(),
            self._panels.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
            output.data_ptr(),
            len(x),
            self._grain,
        )
        return output[:, : self._outputs].contiguous() if self._missing else output


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] -> [out / WIDTH, words of in, WIDTH], aligned; a word is a pair of bf16, or one fp32."""
    words = weight.contiguous().view(torch.int32)  # by pairs: a third of the time
    outputs, count = words.shape
    panels = aligned(weight.numel(), weight.dtype)
    laid = panels.view(torch.int32).view(outputs // WIDTH, count, WIDTH)
    laid.copy_(words.view(outputs // WIDTH, WIDTH, count).transpose(1, 2))
    return panels


def _size(kind: int) -> int:
    return 4 if kind == FLOAT32 else 2


def aligned(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers that begin where a line of memory begins."""
    numbers = torch.empty(count + _ALIGNMENT // dtype.itemsize, dtype=dtype)
    start = -numbers.data_ptr() % _ALIGNMENT // dtype.itemsize
    return numbers[start : start + count]
