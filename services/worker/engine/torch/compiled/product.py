"""x W^T + b in bf16 for CPUs that multiply it: a layout of our own, read once a step at memory's pace.

Products of few rows wait for memory, so a tile reads each weight once for up to twelve rows and asks for the
next in advance. Measured on one Zen 5 core over all matrices of a 60M Llama, against oneDNN's prepacked
products: 2.2 to 2.8 ms for one row, 3.8 to 5.4 for 16, 14.6 to 15.9 for 128, 58 to 59 for 512.
"""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import binding
from numba import carray

from services.worker.engine.torch.compiled.jit import BFLOAT16, FLOAT32, kernel, next_unit
from services.worker.engine.torch.compiled.team import Kernel, Team, kernel_of
from services.worker.engine.torch.compiled.tile import MOST_ROWS, multiplies_bfloat16, multiply
from services.worker.engine.torch.compiled.vectors import LANES

VECTORS = 2
WIDTH = VECTORS * LANES  # outputs of a panel
AHEAD = 16384  # bytes
_ALIGNMENT = 64  # bytes
UNITS_A_THREAD = 8  # long runs of memory, and still little to wait for when a neighbour takes a core


def compile_product(inputs: int, outputs: int, kind: int) -> Any:
    """args: source, panels, bias, target, rows, grain. A unit is as many panels as the grain, for all rows.

    source: bf16 [rows, inputs]; panels: see `tile`; bias: fp32 [outputs] or null; target: [rows, outputs].
    """
    size = 4 if kind == FLOAT32 else 2

    @kernel
    def product(args: Any) -> None:
        a = carray(args, (8,))
        units, source, panels, biases, target, rows, grain = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        unit = next_unit(args)
        while unit < units:
            for index in range(unit * grain, min((unit + 1) * grain, outputs // WIDTH)):
                panel = panels + index * WIDTH * inputs * 2
                bias = biases + index * WIDTH * 4 if biases != 0 else biases
                begin = target + index * WIDTH * size
                blocks = (rows + MOST_ROWS - 1) // MOST_ROWS
                row = 0
                while row < rows:
                    count = (rows - row + blocks - 1) // blocks
                    multiply(
                        BFLOAT16,
                        inputs,
                        inputs,
                        VECTORS,
                        kind,
                        outputs,
                        source + row * inputs * 2,
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


def can_multiply() -> bool:
    """Whether this CPU multiplies bf16, and has no units for whole matrices, which oneDNN serves better."""
    return multiplies_bfloat16() and not binding.get_host_cpu_features().get("amx-bf16")


class Products:
    """Makes linears, with one kernel for all matrices of a shape."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._compiled: dict[tuple[int, int, int], tuple[Any, Kernel]] = {}

    def fits(self, weight: torch.Tensor) -> bool:
        """Whether a matrix [out, in] can be cut into panels."""
        outputs, inputs = weight.shape
        return outputs % WIDTH == 0 and inputs % 2 == 0

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool) -> ProductLinear:
        """weight: bf16 [out, in] that fits; wide: answer in fp32."""
        outputs, inputs = weight.shape
        shape = inputs, outputs, FLOAT32 if wide else BFLOAT16
        if shape not in self._compiled:
            compiled = compile_product(*shape)
            self._compiled[shape] = compiled, kernel_of(compiled)  # the code must outlive the kernel
        return ProductLinear(self._team, self._compiled[shape][1], weight, bias, wide=wide)


class ProductLinear:
    """One matrix; see `Linear`. Inputs are contiguous bf16."""

    def __init__(
        self, team: Team, kernel: Kernel, weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool
    ) -> None:
        self._team = team
        self._kernel = kernel
        self._outputs = len(weight)
        self._grain = max(1, len(weight) // WIDTH // (UNITS_A_THREAD * team.threads))
        self._dtype = torch.float32 if wide else torch.bfloat16
        self._panels = _panels(weight)
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output = torch.empty(len(x), self._outputs, dtype=self._dtype)
        self._team.run(
            self._kernel,
            -(-(self._outputs // WIDTH) // self._grain),
            x.data_ptr(),
            self._panels.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
            output.data_ptr(),
            len(x),
            self._grain,
        )
        return output


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] -> [out / WIDTH, in / 2, WIDTH, 2], aligned."""
    outputs, inputs = weight.shape
    panels = aligned(weight.numel(), torch.bfloat16).view(outputs // WIDTH, inputs // 2, WIDTH, 2)
    pairs = weight.contiguous().view(torch.int32).view(outputs // WIDTH, WIDTH, inputs // 2)
    panels.view(torch.int32).squeeze(-1).copy_(pairs.transpose(1, 2))  # by pairs: a third of the time
    return panels


def aligned(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers that begin where a line of memory begins."""
    numbers = torch.empty(count + _ALIGNMENT // dtype.itemsize, dtype=dtype)
    start = -numbers.data_ptr() % _ALIGNMENT // dtype.itemsize
    return numbers[start : start + count]
