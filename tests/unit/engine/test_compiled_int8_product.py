"""Our int8 products: exact but for the rounding of inputs and weights, the same among any neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from services.worker.engine.torch.compiled.int8_product import (
    GroupedInt8Linear,
    Int8Products,
    can_multiply_int8,
)
from services.worker.engine.torch.compiled.int8_tile import GROUP, PART
from services.worker.engine.torch.compiled.team import Team

pytestmark = pytest.mark.skipif(not can_multiply_int8(), reason="this CPU has no AVX512-VNNI")
ROWS = (1, 2, 3, 5, 6, 7, 13, 100)
DTYPES = (torch.bfloat16, torch.float32)


def linear_of(
    weight: torch.Tensor, *, biased: bool = False, wide: bool = False, threads: int = 2
) -> tuple[GroupedInt8Linear, torch.Tensor]:
    """And its bias, or zeros."""
    bias = torch.randn(len(weight)).to(weight.dtype)
    products = Int8Products(Team(threads), weight.dtype)
    linear = products.linear(weight, bias if biased else None, wide=wide)
    return linear, bias if biased else torch.zeros_like(bias)


def weight_of(outputs: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Rows and groups of very different sizes."""
    torch.manual_seed(3)
    sizes = torch.logspace(-2, 2, inputs // GROUP).repeat_interleave(GROUP)
    return (torch.randn(outputs, inputs) * sizes * torch.logspace(-1, 1, outputs).unsqueeze(1)).to(dtype)


def inputs_of(rows: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(rows, inputs) * torch.logspace(-3, 3, rows).unsqueeze(1)).to(dtype)


def rounded(numbers: torch.Tensor, group: int) -> torch.Tensor:
    """To 255 steps of each group of each row, ties to even."""
    groups = numbers.float().unflatten(1, (-1, group))
    most = groups.abs().amax(2, keepdim=True).clamp(min=1e-30)
    return ((groups * (torch.tensor(127.0) / most)).round() * (most.double() / 127)).flatten(1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)]
)
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 64), (96, 192), (1056, 576)])
def test_products_are_those_of_rounded_numbers(
    outputs: int, inputs: int, dtype: torch.dtype, wide: bool, biased: bool, threads: int
) -> None:
    weight = weight_of(outputs, inputs, dtype)
    linear, bias = linear_of(weight, biased=biased, wide=wide, threads=threads)
    for rows in ROWS:
        x = inputs_of(rows, inputs, dtype)
        expected = rounded(x, PART) @ rounded(weight, GROUP).T + bias.double()
        product = linear(x)
        exact = wide or dtype == torch.float32
        assert product.dtype == (torch.float32 if exact else torch.bfloat16)
        sizes = rounded(x, PART).abs() @ rounded(weight, GROUP).abs().T + bias.double().abs()
        assert ((product - expected).abs() <= sizes * (1e-6 if exact else 4e-3)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_inputs_cost_those_of_other_groups_no_steps(dtype: torch.dtype) -> None:
    weight = weight_of(96, 192, dtype)
    weight[:, :GROUP] = 0
    x = inputs_of(9, 192, dtype)
    x[:, 5] = 1e6
    linear, _ = linear_of(weight)
    exact = x.double() @ weight.double().T
    errors = (linear(x) - exact).norm(dim=1) / exact.norm(dim=1)
    assert (errors < 0.02).all()


@pytest.mark.parametrize("wide", [False, True])
def test_a_token_has_the_same_product_alone_and_among_others(wide: bool) -> None:
    linear, _ = linear_of(weight_of(96, 192), wide=wide)
    x = inputs_of(max(ROWS), 192)
    together = linear(x)
    for rows in ROWS:
        assert torch.equal(linear(x[:rows].contiguous()), together[:rows])


def test_sums_of_the_largest_numbers_do_not_overflow() -> None:
    linear, _ = linear_of(torch.full((32, 640), -2.0), wide=True)
    x = torch.stack((torch.full((640,), 3.0), torch.full((640,), -3.0)))
    torch.testing.assert_close(linear(x), torch.tensor([[-3840.0], [3840.0]]).expand(2, 32))


def test_zeros_have_products_of_zero() -> None:
    linear, _ = linear_of(weight_of(32, 128))
    assert (linear(torch.zeros(3, 128).bfloat16()) == 0).all()
    nothing, _ = linear_of(torch.zeros(32, 128).bfloat16())
    assert (nothing(inputs_of(3, 128)) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(poison: float, dtype: torch.dtype) -> None:
    linear, _ = linear_of(weight_of(64, 128, dtype))
    x = inputs_of(14, 128, dtype)
    before = linear(x)
    x[5, 70] = poison
    after = linear(x)
    assert not after[5].isfinite().any()
    others = [row for row in range(14) if row != 5]
    assert torch.equal(after[others], before[others])


def test_matrices_that_are_no_whole_panels_or_groups_are_left_to_others() -> None:
    products = Int8Products(Team(1), torch.bfloat16)
    assert products.fits(torch.empty(64, 192))
    assert not products.fits(torch.empty(48, 192))
    assert not products.fits(torch.empty(64, 96))
