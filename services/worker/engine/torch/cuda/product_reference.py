"""What products in 8 bits and with fixed tiles are made of, in plain torch.

The functions of `kernels.products`: same names and signatures. Outputs are passed in; arithmetic is in fp32.
"""

from __future__ import annotations

import torch

FP8_MOST = 448.0  # of e4m3
INT8_MOST = 127.0
LEAST = 1e-30  # a row of zeros has a scale too


def quantise_fp8(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    """Rows in e4m3, each by its own scale. A row that is not finite becomes zeros with a scale of NaN.

    x: [rows, width]; values: e4m3 [at least rows, at least width], the rest of a row becomes 0; scales: fp32
    [rows, 1], x is about values * scales.
    """
    values[: len(x)].zero_()
    values[: len(x), : x.shape[1]] = _scaled(x, scales, FP8_MOST).to(values.dtype)


def quantise_int8(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None:
    """The same in int8, to the nearest, halves up."""
    values[: len(x)].zero_()
    values[: len(x), : x.shape[1]] = (_scaled(x, scales, INT8_MOST) + 0.5).floor().to(values.dtype)


def rescale(
    sums: torch.Tensor,
    scales: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """out = sums * scales * weight_scales + bias.

    sums: int32 [at least rows, at least outputs]; scales: fp32 [rows, 1]; weight_scales, bias: fp32
    [outputs]; out: [rows, outputs].
    """
    rows, outputs = out.shape
    product = sums[:rows, :outputs].float() * scales * weight_scales
    out.copy_(product if bias is None else product + bias)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    weight_scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """out = x weight^T, times scales as in `rescale` where there are any, plus bias: a row by itself.

    x: [rows, inputs]; weight: [outputs, inputs] of the same type, e4m3 with scales; bias: [outputs].
    """
    wide, matrix = x.float(), weight.float().T
    product = torch.stack([row @ matrix for row in wide])
    if scales is not None and weight_scales is not None:
        product = product * scales * weight_scales
    out.copy_(product if bias is None else product + bias)


def _scaled(x: torch.Tensor, scales: torch.Tensor, most: float) -> torch.Tensor:
    wide = x.float()
    peak = wide.abs().amax(1, keepdim=True).clamp(min=LEAST)  # NaN and infinity stay
    scales.copy_(torch.where(torch.isfinite(peak), peak / most, torch.nan))
    return (wide * (most / peak)).nan_to_num(nan=0.0).clamp(-most, most)
