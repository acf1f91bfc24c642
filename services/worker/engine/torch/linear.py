"""One matrix, laid out once for the device that multiplies with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch.nn import functional

from services.worker.engine.torch.operators import Quantised


class Linear(Protocol):
    """x -> x W^T + b."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] -> [tokens, out]"""


class MakeLinear(Protocol):
    """Lays a matrix out."""

    def __call__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False
    ) -> Linear:
        """From weight [out, in] and bias [out]; wide: an answer in fp32 is welcome, where that is free."""


Quantise = Callable[[torch.Tensor], Quantised]

_MIDDLE = 128  # the byte that stands for 0 in an input


class PlainLinear:
    """As torch does it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = weight  # [out, in]
        self._bias = bias  # [out]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)


class PackedLinear:
    """bf16 on CPUs whose oneDNN computes in it: laid out once instead of at each call.

    Measured on one Zen 4 core, 896 x 4864: 0.52 ms against 1.73 for one token (research/engines.md §2.3).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return product


class Int8Linear:
    """Weights in 8 bits by rows, inputs in 8 bits by tokens: sums are exact, no token's scale depends on
    another's. For CPUs and matrices that `compiled/int8_product.py` is not made for: it rounds less."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        quantise: Quantise,
        wide: bool = False,
    ) -> None:
        scales = weight.float().abs().amax(1).clamp(min=1e-30) / 127.0  # [out]
        values = (weight.float() / scales.unsqueeze(1)).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(values, None)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = bias
        self._quantise = quantise
        self._dtype = weight.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        values, scales = self._quantise(x)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            values,
            1.0,
            128,
            self._weight,
            self._scales,
            self._zeros,
            None,
            1.0,
            0,
            self._dtype,
            "none",
            [],
            "",
        )
        product *= scales
        return product if self._bias is None else product.add_(self._bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False) -> Linear:
    """The fastest layout that torch has for this dtype and device."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and can_pack():
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def can_pack() -> bool:
    """Whether this torch and this CPU have prepacked bf16 products: the operators are no stable interface."""
    operators = torch.ops.mkldnn
    if not (hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise")):
        return False
    return torch._C._has_mkldnn and bool(operators._is_mkldnn_bf16_supported())


def can_quantise() -> bool:
    """Whether this torch and this CPU have int8 products."""
    operators = torch.ops.onednn
    return hasattr(operators, "qlinear_prepack") and hasattr(operators, "qlinear_pointwise")
