"""Our products: exact to rounding, and a token's is the same to the last bit among any neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from services.worker.engine.torch.compiled.jit import BFLOAT16, FLOAT32
from services.worker.engine.torch.compiled.product import ProductLinear, Products
from services.worker.engine.torch.compiled.team import Team

ROWS = (1, 2, 3, 11, 12, 13, 25, 100)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


def linear_of(
    dtype: torch.dtype,
    outputs: int,
    inputs: int,
    *,
    biased: bool = False,
    wide: bool = False,
    threads: int = 2,
) -> tuple[ProductLinear, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(3)
    weight = torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased else None
    products = Products(Team(threads), FLOAT32 if dtype == torch.float32 else BFLOAT16)
    return products.linear(weight, bias, wide=wide), weight, bias


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 2), (64, 96), (1056, 130), (45, 6)])
@DTYPES
def test_products_are_right(
    dtype: torch.dtype, outputs: int, inputs: int, wide: bool, biased: bool, threads: int
) -> None:
    linear, weight, bias = linear_of(dtype, outputs, inputs, biased=biased, wide=wide, threads=threads)
    wide = wide or dtype == torch.float32
    for rows in ROWS:
        x = torch.randn(rows, inputs).to(dtype)
        exact = x.float() @ weight.float().T + (0 if bias is None else bias.float())
        product = linear(x)
        assert product.dtype == (torch.float32 if wide else torch.bfloat16)
        tolerance = {"rtol": 1e-5, "atol": 1e-4} if wide else {"rtol": 8e-3, "atol": 1e-2}
        torch.testing.assert_close(product.float(), exact, **tolerance)


@pytest.mark.parametrize("wide", [False, True])
@DTYPES
def test_a_token_has_the_same_product_alone_and_among_others(dtype: torch.dtype, wide: bool) -> None:
    linear, *_ = linear_of(dtype, 96, 128, wide=wide)
    x = torch.randn(max(ROWS), 128).to(dtype)
    together = linear(x)
    for rows in ROWS:
        assert torch.equal(linear(x[:rows].contiguous()), together[:rows])


@DTYPES
def test_a_row_that_is_not_finite_stays_so_and_harms_no_other(dtype: torch.dtype) -> None:
    linear, *_ = linear_of(dtype, 64, 64)
    x = torch.randn(14, 64).to(dtype)
    before = linear(x)
    x[5, 3], x[7, 0] = math.nan, math.inf
    after = linear(x)
    assert after[5].isnan().all()
    assert not after[7].isfinite().any()
    others = [row for row in range(14) if row not in (5, 7)]
    assert torch.equal(after[others], before[others])


def test_pairs_of_inputs_are_wanted_in_bf16_alone() -> None:
    assert [Products(Team(1)).can_take(inputs) for inputs in (2, 3)] == [True, False]
    assert Products(Team(1), FLOAT32).can_take(3)
