"""x W^T + b in 8 bits by groups of inputs, for CPUs that multiply bytes: `int8_tile` says how they lie.

A scale for each token and 32 inputs, and for each output and 64 inputs: with one scale for a whole token a
few large inputs leave the others too few steps. Measured on one Zen 5 core over all matrices of a 60M Llama,
in turns with ours in bf16 and oneDNN's with a scale a token: 1.9 ms for one row, 3.2 and 3.1; 2.7 ms for 16,
4.8 and 4.9; 40 ms for 512, 58 and 54.
"""

from __future__ import annotations

from typing import Any

import torch
from numba import carray

from services.worker.engine.torch.compiled.int8_rows import ROWS_A_UNIT, compile_quantise_parts
from services.worker.engine.torch.compiled.int8_tile import (
    GROUP,
    MIDDLE,
    MOST_ROWS,
    PANEL_GROUP,
    PART,
    ROW_PART,
    WIDTH,
    multiplies_int8,
    multiply_int8,
)
from services.worker.engine.torch.compiled.jit import BFLOAT16, FLOAT32, kernel, next_unit
from services.worker.engine.torch.compiled.product import AHEAD, UNITS_A_THREAD, aligned
from services.worker.engine.torch.compiled.team import Kernel, Team, kernel_of

_AT_ONCE = 64  # panels laid out: little memory beside the weights


def compile_int8_product(inputs: int, outputs: int, kind: int) -> Any:
    """args: source, panels, bias, target, rows, grain. A unit is as many panels as the grain, for all rows.

    source: [rows, parts, ROW_PART]; panels: [outputs / WIDTH, groups, PANEL_GROUP]; bias: fp32 [outputs]
    or null; target: [rows, outputs].
    """
    size = 4 if kind == FLOAT32 else 2
    groups, parts = inputs // GROUP, inputs // PART

    @kernel
    def int8_product(args: Any) -> None:
        a = carray(args, (8,))
        units, source, panels, biases, target, rows, grain = a[1], a[2], a[3], a[4], a[5], a[6], a[7]
        unit = next_unit(args)
        while unit < units:
            for index in range(unit * grain, min((unit + 1) * grain, outputs // WIDTH)):
                panel = panels + index * groups * PANEL_GROUP
                bias = biases + index * WIDTH * 4 if biases != 0 else biases
                begin = target + index * WIDTH * size
                blocks = (rows + MOST_ROWS - 1) // MOST_ROWS
                row = 0
                while row < rows:
                    count = (rows - row + blocks - 1) // blocks
                    multiply_int8(
                        groups,
                        kind,
                        outputs,
                        source + row * parts * ROW_PART,
                        panel,
                        panel + AHEAD,
                        bias,
                        begin + row * outputs * size,
                        count,
                    )
                    row += count
                    blocks -= 1
            unit = next_unit(args)

    return int8_product


def can_multiply_int8() -> bool:
    """Whether this CPU multiplies bytes. Units for whole matrices (AMX) would be faster with many tokens, but
    what serves them has one scale a token."""
    return multiplies_int8()


class Int8Products:
    """Makes linears, with one kernel for all matrices of a shape."""

    def __init__(self, team: Team, dtype: torch.dtype) -> None:
        self._team = team
        self._dtype = dtype
        compiled = compile_quantise_parts(BFLOAT16 if dtype == torch.bfloat16 else FLOAT32)
        self._kept: list[Any] = [compiled]  # code must outlive its kernel
        self._quantise = kernel_of(compiled)
        self._products: dict[tuple[int, int, int], Kernel] = {}

    def fits(self, weight: torch.Tensor) -> bool:
        """Whether a matrix [out, in] can be cut into panels and groups."""
        outputs, inputs = weight.shape
        return outputs % WIDTH == 0 and inputs % GROUP == 0

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide: bool) -> GroupedInt8Linear:
        """weight: [out, in] that fits; wide: answer in fp32."""
        outputs, inputs = weight.shape
        dtype = torch.float32 if wide else self._dtype
        shape = inputs, outputs, FLOAT32 if dtype == torch.float32 else BFLOAT16
        if shape not in self._products:
            self._kept.append(compile_int8_product(*shape))
            self._products[shape] = kernel_of(self._kept[-1])
        return GroupedInt8Linear(self, self._team, self._products[shape], weight, bias, dtype)

    def quantise(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, in] -> [rows, in / PART, ROW_PART] bytes."""
        rows, inputs = x.shape
        output = torch.empty(rows, inputs // PART, ROW_PART, dtype=torch.uint8)
        units = -(-rows // ROWS_A_UNIT)
        self._team.run(self._quantise, units, x.data_ptr(), output.data_ptr(), rows, inputs // PART)
        return output


class GroupedInt8Linear:
    """One matrix; see `Linear`. Inputs are contiguous."""

    def __init__(
        self,
        products: Int8Products,
        team: Team,
        kernel: Kernel,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self._products = products
        self._team = team
        self._kernel = kernel
        self._outputs = len(weight)
        self._grain = max(1, len(weight) // WIDTH // (UNITS_A_THREAD * team.threads))
        self._dtype = dtype
        self._panels = _panels(weight)
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        quantised = self._products.quantise(x)
        output = torch.empty(len(x), self._outputs, dtype=self._dtype)
        self._team.run(
            self._kernel,
            -(-(self._outputs // WIDTH) // self._grain),
            quantised.data_ptr(),
            self._panels.data_ptr(),
            0 if self._bias is None else self._bias.data_ptr(),
            output.data_ptr(),
            len(x),
            self._grain,
        )
        return output


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] -> [out / WIDTH, in / GROUP, PANEL_GROUP] bytes, aligned."""
    outputs, inputs = weight.shape
    count = outputs // WIDTH * (inputs // GROUP) * PANEL_GROUP
    panels = aligned(count, torch.uint8).view(-1, inputs // GROUP, PANEL_GROUP)
    for first in range(0, len(panels), _AT_ONCE):
        part = panels[first : first + _AT_ONCE]
        _lay_out(weight[first * WIDTH :][: len(part) * WIDTH].float(), part)
    return panels


def _lay_out(rows: torch.Tensor, panels: torch.Tensor) -> None:
    """[n * WIDTH, in] -> [n, in / GROUP, PANEL_GROUP] bytes."""
    grouped = rows.view(len(panels), WIDTH, -1, GROUP)
    most = grouped.abs().amax(3, keepdim=True).clamp(min=1e-30)  # [n, WIDTH, groups, 1]
    values = (grouped * (torch.tensor(127.0) / most)).round_().add_(MIDDLE).to(torch.uint8)
    panels[..., : 4 * WIDTH].view(torch.float32).copy_((most / 127.0).squeeze(3).transpose(1, 2))
    quads = values.view(torch.int32).permute(0, 2, 3, 1)  # [n, groups, GROUP / 4, WIDTH]
    panels[..., 4 * WIDTH :].view(torch.int32).view(quads.shape).copy_(quads)
