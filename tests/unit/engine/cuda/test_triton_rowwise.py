"""What kernels do to rows, by Triton's interpreter, against plain torch."""

from __future__ import annotations

import pytest
import torch

from services.worker.engine.torch.cuda import kernels, reference
from tests.support.kernel_cases import GUARD, garbage

DTYPES = {torch.float32: 2e-6, torch.float16: 2e-3}  # and their tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 100])
@pytest.mark.parametrize("adds", [False, True])
def test_add_norm_adds_in_place_and_norms_what_it_kept(dtype: torch.dtype, width: int, adds: bool) -> None:
    tokens = 5
    hidden = torch.randn(tokens + GUARD, width).to(dtype)
    delta = torch.randn(tokens, width).to(dtype) if adds else None
    weight = torch.randn(width).to(dtype)
    expected_hidden, expected = hidden.clone(), garbage(tokens, width, dtype=dtype)
    out = garbage(tokens + GUARD, width, dtype=dtype)
    kernels.add_norm(hidden[:tokens], delta, weight, 1e-5, out[:tokens])
    reference.add_norm(expected_hidden[:tokens], delta, weight, 1e-5, expected)
    assert torch.equal(hidden, expected_hidden)
    torch.testing.assert_close(out[:tokens], expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])
    assert out[tokens:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 32), (14, 2, 80), (3, 3, 16)])
@pytest.mark.parametrize("normed", [False, True])
def test_place_writes_its_rows_of_the_pool_and_no_other(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, normed: bool
) -> None:
    tokens, half = 4, head_dim // 2
    merged = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    norms = [torch.randn(head_dim).to(dtype) if normed else None for _ in range(2)]
    angles = torch.outer(torch.arange(50.0), torch.rand(half))
    tables = angles.cos().to(dtype), angles.sin().to(dtype)
    positions, places = torch.tensor([0, 49, 7, 8], dtype=torch.int32), torch.tensor([17, 3, 9, 30])
    pools = [garbage(2, 5, 16, kv_heads, head_dim, dtype=dtype) for _ in range(2)]
    queries = [garbage(tokens + GUARD, heads, head_dim, dtype=dtype) for _ in range(2)]
    for place, pool, query in zip((kernels.place, reference.place), pools, queries, strict=True):
        place(merged, *norms, 1e-6, *tables, positions, places, pool, query[:tokens], heads, kv_heads)
    tolerance = DTYPES[dtype]
    torch.testing.assert_close(pools[0], pools[1], atol=tolerance, rtol=tolerance, equal_nan=True)
    torch.testing.assert_close(queries[0], queries[1], atol=tolerance, rtol=tolerance, equal_nan=True)
    assert pools[0].isfinite().sum() == 2 * tokens * kv_heads * head_dim


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ffn", [48, 1500])
def test_gate_is_silu_times_up_for_any_size_of_numbers(dtype: torch.dtype, ffn: int) -> None:
    merged = (torch.randn(3, 2 * ffn) * 40).to(dtype)
    out, expected = garbage(3 + GUARD, ffn, dtype=dtype), garbage(3, ffn, dtype=dtype)
    kernels.gate(merged, out[:3])
    reference.gate(merged, expected)
    torch.testing.assert_close(out[:3], expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])
    assert out[3:].isnan().all()
