"""Products in 8 bits and with fixed tiles: the kernels say what the reference says, rows do not meet."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.cuda import product_reference, products
from services.worker.engine.torch.cuda.kernels import products as product_kernels
from services.worker.engine.torch.cuda.products import choose_products
from services.worker.engine.torch.linear import Linear, MakeLinear
from tests.support.triton_interpreter import multiply_by_rows

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
SHAPES = [(16, 16), (45, 50), (96, 130), (33, 7)]  # outputs, inputs
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
KERNELS = pytest.mark.parametrize("kernels", [product_reference, product_kernels], ids=["torch", "triton"])
BITS = pytest.mark.parametrize(
    ("quantise", "kind"), [("quantise_fp8", FP8), ("quantise_int8", torch.int8)], ids=["fp8", "int8"]
)


def makers(kernels: ModuleType) -> dict[str, MakeLinear]:
    """Every kind of product, without asking what this device has."""
    maker, fixed = products._Maker(kernels), products._Maker(kernels, deterministic=True)
    return {"fp8": maker.fp8, "int8": maker.int8, "fixed": fixed.exact, "fixed fp8": fixed.fp8}


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, 3.0 if dtype in (FP8, torch.int8) else math.nan).to(dtype)


def inputs_of(rows: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of very different sizes."""
    sizes = torch.logspace(-3, 3, rows).unsqueeze(1)
    return (torch.randn(rows, width) * sizes).to(dtype)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


@BITS
@DTYPES
def test_rows_in_8_bits_are_those_of_the_reference(
    quantise: str, kind: torch.dtype, dtype: torch.dtype
) -> None:
    x = inputs_of(7, 50, dtype)
    x[1], x[2, 9], x[3, 1], x[4] = 0.0, math.nan, -math.inf, 1e-38
    results = []
    for kernels in (product_kernels, product_reference):
        values, scales = poisoned(9, 64, dtype=kind), poisoned(7, 1)
        getattr(kernels, quantise)(x, values, scales)
        results.append((values.float(), scales))
    (values, scales), (wanted, wanted_scales) = results
    torch.testing.assert_close(scales, wanted_scales, rtol=1e-6, atol=0.0, equal_nan=True)
    assert scales.isnan().flatten().tolist() == [False, False, True, True, False, False, False]
    assert (values[2:4] == 0).all()
    assert (values[7:] == 3).all(), "rows beyond the input are left alone"
    differ = values != wanted
    # The interpreter loses the carry of a mantissa that is rounded up to the next power of two.
    carried = (wanted.abs().log2() % 1 == 0) & (values.abs() * 2 == wanted.abs())
    assert not (differ & ~carried).any()
    assert differ.sum() < 20


@BITS
def test_values_times_scales_are_near_the_numbers(quantise: str, kind: torch.dtype) -> None:
    x = inputs_of(9, 64)
    values, scales = poisoned(9, 64, dtype=kind), poisoned(9, 1)
    getattr(product_reference, quantise)(x, values, scales)
    most = x.abs().amax(1, keepdim=True)
    bound = x.abs() / 16 + most / 448 / 512 if kind == FP8 else most / 254
    assert ((values.float() * scales - x).abs() <= bound * 1.001).all()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["fp8", "int8", "fixed", "fixed fp8"])
@DTYPES
def test_products_are_near_the_exact_ones(
    dtype: torch.dtype, kind: str, biased: bool, outputs: int, inputs: int
) -> None:
    weight, x = torch.randn(outputs, inputs).to(dtype), inputs_of(9, inputs, dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    exact = functional.linear(x.float(), weight.float())
    product = makers(product_reference)[kind](weight, bias)(x)
    assert product.dtype == dtype
    assert product.is_contiguous()
    without = product.float() - (0 if bias is None else bias.float())
    large = exact.norm(dim=1) > 10 * outputs**0.5  # beside a bias, bf16 leaves nothing of small ones
    errors = (without - exact).norm(dim=1) / exact.norm(dim=1)
    assert (errors[large if biased else slice(None)] < (0.01 if kind == "fixed" else 0.07)).all()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("kind", ["fp8", "fixed fp8"])
def test_fp8_is_the_arithmetic_of_its_numbers(kind: str, outputs: int, inputs: int) -> None:
    weight, x, bias = torch.randn(outputs, inputs), inputs_of(9, inputs), torch.randn(outputs)
    factors = []
    for matrix in (x, weight):
        values, scales = poisoned(*matrix.shape, dtype=FP8), poisoned(len(matrix), 1)
        product_reference.quantise_fp8(matrix, values, scales)
        factors.append(values.float() * scales)
    wanted = functional.linear(*factors, bias)
    product = makers(product_reference)[kind](weight, bias)(x)
    torch.testing.assert_close(product, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["int8", "fixed", "fixed fp8"])
def test_kernels_multiply_as_the_reference(
    kind: str, biased: bool, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("quantise_fp8", "quantise_int8"):  # one step more or less shows
        monkeypatch.setattr(product_kernels, name, getattr(product_reference, name))
    dtype = torch.float16  # the interpreter does not multiply bf16
    weight, x = torch.randn(outputs, inputs).to(dtype), inputs_of(70, inputs, dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    ours, wanted = (
        makers(kernels)[kind](weight, bias)(x) for kernels in (product_kernels, product_reference)
    )
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, wanted, rtol=2e-3, atol=2e-3)


@KERNELS
@pytest.mark.parametrize("kind", ["int8", "fixed", "fixed fp8"])
def test_a_row_alone_is_bit_for_bit_the_row_among_63_others(
    kernels: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_by_rows(monkeypatch)
    weight, x = torch.randn(45, 130), inputs_of(64, 130)
    linear = makers(kernels)[kind](weight, torch.randn(45))
    together = linear(x)
    for row in range(64):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])
    assert torch.equal(linear(x[50:].contiguous()), together[50:])


@KERNELS
@pytest.mark.parametrize("kind", ["fp8", "int8", "fixed", "fixed fp8"])
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(kernels: ModuleType, kind: str) -> None:
    linear: Linear = makers(kernels)[kind](torch.randn(48, 50))
    x = inputs_of(14, 50)
    before = linear(x)
    x[5, 3], x[7, 0] = math.nan, math.inf
    after = linear(x)
    assert after[5].isnan().all()
    assert not after[7].isfinite().any()
    others = [row for row in range(14) if row not in (5, 7)]
    assert torch.equal(after[others], before[others])


@KERNELS
@pytest.mark.parametrize("kind", ["fp8", "int8", "fixed", "fixed fp8"])
def test_rows_of_zeros_give_the_bias(kernels: ModuleType, kind: str) -> None:
    weight, bias = torch.randn(40, 50), torch.arange(40.0)
    weight[7] = 0.0
    x = inputs_of(3, 50)
    x[1] = 0.0
    product = makers(kernels)[kind](weight, bias)(x)
    assert torch.equal(product[1], bias)
    assert (product[:, 7] == 7.0).all()


@KERNELS
@pytest.mark.parametrize("quantization", ["fp8", "int8"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_logits_are_never_in_8_bits(
    kernels: ModuleType, quantization: products.Quantization, deterministic: bool
) -> None:
    make = products.products_of(quantization, kernels, deterministic=deterministic).make_linear
    weight, x = torch.randn(48, 50), inputs_of(9, 50)
    torch.testing.assert_close(make(weight, wide=True)(x), functional.linear(x, weight), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(make(weight)(x), functional.linear(x, weight), rtol=1e-4, atol=1e-4)


def test_tiles_depend_on_the_weight_alone() -> None:
    """The kernel's rows are a number like any other: it is compiled once for all batches."""
    assert product_kernels.tiles_of(torch.empty(4096, 8, dtype=torch.bfloat16)) == (32, 64)
    assert product_kernels.tiles_of(torch.empty(28672, 8, dtype=torch.bfloat16)) == (128, 64)
    assert product_kernels.tiles_of(torch.empty(28672, 8, dtype=FP8)) == (128, 128)


class TestChoice:
    """What settings lead to on which device."""

    @pytest.fixture
    def card(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
        """A CUDA device to ask about, whose trial runs on the CPU."""
        found = {"capability": (9, 0)}
        trial = products._fault_of_trial
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: found["capability"])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA Test")
        monkeypatch.setattr(products, "_fault_of_trial", lambda kind, _device: trial(kind, CPU))
        return found

    @pytest.mark.parametrize(
        ("quantization", "deterministic", "name"),
        [
            ("none", False, ""),
            ("none", True, "fixed tiles"),
            ("fp8", False, "fp8 by rows"),
            ("fp8", True, "fp8 by rows, fixed tiles"),
            ("int8", False, "int8 by rows"),
            ("int8", True, "int8 by rows, fixed tiles"),
        ],
    )
    def test_names_tell_arithmetic_apart(
        self, card: object, quantization: products.Quantization, deterministic: bool, name: str
    ) -> None:
        chosen = choose_products(quantization, deterministic=deterministic, device=torch.device("cuda", 0))
        assert (chosen.name, chosen.deterministic) == (name, deterministic)

    @pytest.mark.parametrize("quantization", ["fp8", "int8"])
    def test_a_cpu_is_refused(self, quantization: products.Quantization) -> None:
        with pytest.raises(EngineLoadError, match=f"{quantization} is not to be had: cpu is no CUDA device"):
            choose_products(quantization, deterministic=False, device=CPU)

    def test_an_older_card_is_refused_by_its_capability(self, card: dict[str, tuple[int, int]]) -> None:
        card["capability"] = (8, 6)
        with pytest.raises(EngineLoadError, match=r"NVIDIA Test has compute capability 8\.6, it takes 8\.9"):
            choose_products("fp8", deterministic=False, device=torch.device("cuda", 0))
        assert choose_products("int8", deterministic=True, device=torch.device("cuda", 0)).deterministic

    def test_a_torch_that_cannot_is_refused_in_one_line(
        self, card: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cannot(*_: object, **__: object) -> torch.Tensor:
            raise RuntimeError("no rowwise scaling\nin this build")

        monkeypatch.setattr(torch, "_scaled_mm", cannot)
        with pytest.raises(EngineLoadError, match=r"cannot: no rowwise scaling; use quantization none$"):
            choose_products("fp8", deterministic=False, device=torch.device("cuda", 0))

    def test_a_torch_that_multiplies_wrongly_is_refused(
        self, card: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = torch._int_mm
        monkeypatch.setattr(torch, "_int_mm", lambda left, other: right(left, other) * 2)
        with pytest.raises(EngineLoadError, match="multiplies wrongly"):
            choose_products("int8", deterministic=False, device=torch.device("cuda", 0))
