"""Products of the CUDA engine: which kind by settings, each laid out once.

    none   torch's own                       deterministic: fixed tiles
    fp8    torch._scaled_mm, a scale a row   deterministic: fixed tiles over the same e4m3
    int8   torch._int_mm, a scale a row      as it is: sums of integers have no order

Logits are never in 8 bits: that would be most of what is lost (perplexity of SmolLM2-135M in two windows of
`bench.quality`: fp8 8.5 % more with them and 3.0 % without, int8 2.6 and 0.5 %), for a fifteenth of what an
8B model reads.

int8 multiplies bytes with bytes instead of widening the weights. Both halve what a decode reads; but a card
multiplies bytes at twice the rate of bf16, so by its data sheet an H200 reads longer than it multiplies up to
about 180 tokens a step, against 90 at best with widened weights, which fall behind bf16 beyond that and in
prompts. Where a card has fp8, that rounds large and small inputs of a token alike and is the better choice.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.nn import functional

from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.cuda import product_reference
from services.worker.engine.torch.linear import Linear, MakeLinear, make_linear

if TYPE_CHECKING:
    from services.worker.engine.settings import Quantization

_FP8 = torch.float8_e4m3fn
_LEAST_CAPABILITY = {"fp8": (8, 9), "int8": (8, 0), "none": (8, 0)}
_FIXED = "fixed tiles"
_WHOLE = 16  # inputs and outputs are made multiples of this: _scaled_mm and cuBLAS want it
_LEAST_ROWS = 32  # of a product of bytes: cuBLAS wants more than 16


class Products(NamedTuple):
    """How matrices are multiplied."""

    name: str  # "" for torch's own; results differ by it
    make_linear: MakeLinear
    deterministic: bool  # a row's result does not depend on the others


def choose_products(
    quantization: Quantization,
    *,
    deterministic: bool,
    device: torch.device,
    kernels: ModuleType = product_reference,
) -> Products:
    """Products on a device; kernels: `kernels.products` for a GPU.

    Raises EngineLoadError, one line, for a quantisation that this device or this torch does not have.
    """
    if quantization != "none" and (fault := fault_of(quantization, device)):
        raise EngineLoadError(f"{quantization} is not to be had: {fault}; use quantization none")
    return products_of(quantization, kernels, deterministic=deterministic)


def products_of(quantization: Quantization, kernels: ModuleType, *, deterministic: bool) -> Products:
    """The same, whatever the device: on a CPU with `product_reference` they round as on a card."""
    maker = _Maker(kernels, deterministic=deterministic)
    kinds: dict[Quantization, tuple[str, MakeLinear]] = {
        "none": ("", maker.exact),
        "fp8": ("fp8 by rows", maker.fp8),
        "int8": ("int8 by rows", maker.int8),
    }
    name, make = kinds[quantization]
    return Products(", ".join(filter(None, (name, _FIXED * deterministic))), make, deterministic)


def fault_of(quantization: Quantization, device: torch.device) -> str | None:
    """Why products in 8 bits are not to be had on a device; None where they are, which is tried out."""
    if device.type != "cuda":
        return f"{device} is no CUDA device"
    least, found = _LEAST_CAPABILITY[quantization], torch.cuda.get_device_capability(device)
    if found < least:
        has, takes = (".".join(map(str, each)) for each in (found, least))
        return f"{torch.cuda.get_device_name(device)} has compute capability {has}, it takes {takes}"
    return _fault_of_trial(quantization, device)


def _fault_of_trial(quantization: Quantization, device: torch.device) -> str | None:
    """One small product, with a row that is not finite, against the same in fp32."""
    x, weight = (torch.arange(rows * 48.0, device=device).sin().view(rows, 48).bfloat16() for rows in (5, 32))
    x[3, 7] = torch.nan
    maker = _Maker(product_reference)
    try:
        product = (maker.fp8 if quantization == "fp8" else maker.int8)(weight)(x).float()
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        return f"torch {torch.__version__} cannot: {str(error).splitlines()[0]}"
    wanted = functional.linear(x.float(), weight.float())
    errors = (product - wanted).norm(dim=1) / wanted.norm(dim=1)
    fits = bool(product[3].isnan().all()) and bool((errors[[0, 1, 2, 4]] < 0.1).all())
    return None if fits else f"torch {torch.__version__} multiplies wrongly"


class _Maker:
    """Lays matrices out for products over some kernels; each method is a `MakeLinear`, wide for logits."""

    def __init__(self, kernels: ModuleType, *, deterministic: bool = False) -> None:
        self._kernels = kernels
        self._deterministic = deterministic

    def exact(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False) -> Linear:
        if self._deterministic:
            return FixedLinear(weight, bias, self._kernels, wide=wide)
        return make_linear(weight, bias, wide=wide)

    def fp8(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False) -> Linear:
        if wide:
            return self.exact(weight, bias, wide=True)
        made = FixedFp8Linear if self._deterministic else Fp8Linear
        return made(weight, bias, self._kernels)

    def int8(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False) -> Linear:
        if wide:
            return self.exact(weight, bias, wide=True)
        return Int8Linear(weight, bias, self._kernels)


class _Matrix(NamedTuple):
    """A weight in 8 bits, both sides whole."""

    values: torch.Tensor  # [outputs, inputs], whole
    scales: torch.Tensor  # fp32 [outputs, 1], whole
    outputs: int  # of the weight itself

    @property
    def inputs(self) -> int:
        return self.values.shape[1]


class Fp8Linear:
    """Weights in e4m3 by rows, inputs in e4m3 by tokens as they come. Answers are rounded to bf16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: ModuleType) -> None:
        self._quantise = kernels.quantise_fp8
        self._weight = _in_8_bits(weight, _FP8, self._quantise)
        self._dtype = weight.dtype
        padding = len(self._weight.values) - len(weight)
        self._bias = None if bias is None else functional.pad(bias.bfloat16(), (0, padding))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        values, scales = _rows_in_8_bits(x, self._weight.inputs, _FP8, self._quantise)
        product: torch.Tensor = torch._scaled_mm(
            values,
            self._weight.values.t(),
            scale_a=scales,
            scale_b=self._weight.scales.t(),
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return product[:, : self._weight.outputs].contiguous().to(self._dtype)


class Int8Linear:
    """Weights in int8 by rows, inputs in int8 by tokens as they come: sums are exact in any order."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: ModuleType) -> None:
        self._kernels = kernels
        self._weight = _in_8_bits(weight, torch.int8, kernels.quantise_int8)
        self._scales = self._weight.scales[: len(weight), 0].contiguous()
        self._bias = None if bias is None else bias.float()
        self._dtype = weight.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        quantise = self._kernels.quantise_int8
        values, scales = _rows_in_8_bits(x, self._weight.inputs, torch.int8, quantise, _LEAST_ROWS)
        sums = torch._int_mm(values, self._weight.values.t())
        out = torch.empty(len(x), self._weight.outputs, dtype=self._dtype, device=x.device)
        self._kernels.rescale(sums, scales, self._scales, self._bias, out)
        return out


class FixedLinear:
    """A row's sums have one order, whatever the batch."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: ModuleType, *, wide: bool = False
    ) -> None:
        self._multiply = kernels.multiply
        self._weight = weight.contiguous()
        self._bias = bias
        self._dtype = torch.float32 if wide else weight.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), len(self._weight), dtype=self._dtype, device=x.device)
        self._multiply(x, self._weight, None, None, self._bias, out)
        return out


class FixedFp8Linear:
    """The same of what `Fp8Linear` multiplies."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: ModuleType) -> None:
        self._kernels = kernels
        self._weight = _in_8_bits(weight, _FP8, kernels.quantise_fp8)
        self._scales = self._weight.scales[: len(weight), 0].contiguous()
        self._bias = bias
        self._dtype = weight.dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self._weight
        values, scales = _rows_in_8_bits(x, matrix.inputs, _FP8, self._kernels.quantise_fp8)
        out = torch.empty(len(x), matrix.outputs, dtype=self._dtype, device=x.device)
        weight = matrix.values[: matrix.outputs]
        self._kernels.multiply(values, weight, scales, self._scales, self._bias, out)
        return out


class _Quantise(Protocol):
    """`quantise_fp8`, or `quantise_int8`."""

    def __call__(self, x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> None: ...


def _in_8_bits(weight: torch.Tensor, dtype: torch.dtype, quantise: _Quantise) -> _Matrix:
    outputs, inputs = weight.shape
    values = torch.zeros(_whole(outputs), _whole(inputs), dtype=dtype, device=weight.device)
    scales = torch.ones(len(values), 1, device=weight.device)
    quantise(weight.contiguous(), values[:outputs], scales[:outputs])
    return _Matrix(values, scales, outputs)


def _rows_in_8_bits(
    x: torch.Tensor, inputs: int, dtype: torch.dtype, quantise: _Quantise, least_rows: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [at least so many rows, inputs], those beyond x's undefined; scales [rows, 1]."""
    values = torch.empty(max(len(x), least_rows), inputs, dtype=dtype, device=x.device)
    scales = torch.empty(len(x), 1, device=x.device)
    quantise(x, values, scales)
    return values, scales


def _whole(size: int) -> int:
    return -(-size // _WHOLE) * _WHOLE
