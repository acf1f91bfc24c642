"""Our bf16 products: exact to rounding, and a token's is the same to the last bit among any neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from services.worker.engine.torch.compiled.product import ProductLinear, Products, can_multiply
from services.worker.engine.torch.compiled.team import Team

pytestmark = pytest.mark.skipif(not can_multiply(), reason="this CPU has no AVX512-BF16")
ROWS = (1, 2, 3, 11, 12, 13, 25, 100)


def linear_of(
    outputs: int, inputs: int, *, biased: bool = False, wide: bool = False, threads: int = 2
) -> tuple[ProductLinear, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(3)
    weight = torch.randn(outputs, inputs).bfloat16()
    bias = torch.randn(outputs).bfloat16() if biased else None
    return Products(Team(threads)).linear(weight, bias, wide=wide), weight, bias


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 2), (64, 96), (1056, 130)])
def test_products_are_right(outputs: int, inputs: int, wide: bool, biased: bool, threads: int) -> None:
    linear, weight, bias = linear_of(outputs, inputs, biased=biased, wide=wide, threads=threads)
    for rows in ROWS:
        x = torch.randn(rows, inputs).bfloat16()
        exact = x.float() @ weight.float().T + (0 if bias is None else bias.float())
        product = linear(x)
        assert product.dtype == (torch.float32 if wide else torch.bfloat16)
        tolerance = {"rtol": 1e-5, "atol": 1e-4} if wide else {"rtol": 8e-3, "atol": 1e-2}
        torch.testing.assert_close(product.float(), exact, **tolerance)


@pytest.mark.parametrize("wide", [False, True])
def test_a_token_has_the_same_product_alone_and_among_others(wide: bool) -> None:
    linear, *_ = linear_of(96, 128, wide=wide)
    x = torch.randn(max(ROWS), 128).bfloat16()
    together = linear(x)
    for rows in ROWS:
        assert torch.equal(linear(x[:rows].contiguous()), together[:rows])


def test_a_row_that_is_not_finite_stays_so_and_harms_no_other() -> None:
    linear, *_ = linear_of(64, 64)
    x = torch.randn(14, 64).bfloat16()
    before = linear(x)
    x[5, 3], x[7, 0] = math.nan, math.inf
    after = linear(x)
    assert after[5].isnan().all()
    assert not after[7].isfinite().any()
    others = [row for row in range(14) if row not in (5, 7)]
    assert torch.equal(after[others], before[others])


def test_matrices_that_are_no_whole_panels_are_left_to_others() -> None:
    products = Products(Team(1))
    assert products.fits(torch.empty(64, 2))
    assert not products.fits(torch.empty(65, 2))
    assert not products.fits(torch.empty(64, 3))
