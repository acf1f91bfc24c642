"""Paged attention's kernels, by Triton's interpreter, against plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from services.worker.engine.torch.cuda import kernels, reference
from services.worker.engine.torch.cuda.kernels import paged
from tests.support.kernel_cases import GUARD, AttentionCase, attention_case, garbage
from tests.support.triton_interpreter import multiply_by_rows

BLOCK = 16


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that few programs fill: contexts of chunks are not cut."""
    monkeypatch.setattr(paged, "_MULTIPROCESSORS", 1)


def attend(case: AttentionCase, *, deterministic: bool = False) -> torch.Tensor:
    """What the kernels write, with a guard behind their output and their workspace."""
    tokens, heads, head_dim = case.query.shape
    rows, kv_heads, width = len(case.rows.slots), case.pool.shape[3], case.tables.shape[1]
    needed = kernels.attention_workspace(
        rows, tokens, heads, kv_heads, head_dim, width, deterministic=deterministic
    )
    workspace = garbage(needed + GUARD)
    out = garbage(tokens + GUARD, heads, head_dim, dtype=case.query.dtype)
    kernels.attend(
        case.query, case.pool, case.rows, case.tables, out[:tokens], workspace[:needed],
        scale=head_dim**-0.5, block_size=BLOCK, deterministic=deterministic,
    )  # fmt: skip
    assert workspace[needed:].isnan().all()
    return out


def check(case: AttentionCase, tolerance: float, *, deterministic: bool = False) -> None:
    out = attend(case, deterministic=deterministic)
    expected = torch.full_like(out, torch.nan)
    reference.attend(
        case.query, case.pool, case.rows, case.tables, expected[: len(case.query)], garbage(0),
        scale=case.query.shape[-1] ** -0.5, block_size=BLOCK,
    )  # fmt: skip
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance, equal_nan=True)
    assert out[: case.tokens].isfinite().all()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(6, 2, 64), (7, 1, 80), (9, 1, 96), (8, 2, 128), (2, 1, 256), (20, 1, 32)],
)
def test_decodes_read_their_context_and_nothing_beyond(heads: int, kv_heads: int, head_dim: int) -> None:
    check(attention_case([1, 1, 1], [1, 37, 80], heads, kv_heads, head_dim), 2e-6)


@pytest.mark.parametrize("deterministic", [False, True])
def test_long_contexts_are_summed_up_from_pieces(deterministic: bool) -> None:
    check(attention_case([1, 1], [300, 130], 2, 1, 32), 2e-6, deterministic=deterministic)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 32), (4, 2, 24)])
def test_chunks_and_decodes_share_a_batch(
    heads: int, kv_heads: int, head_dim: int, deterministic: bool, small_device: None
) -> None:
    case = attention_case([1, 7, 25, 1], [70, 7, 40, 17], heads, kv_heads, head_dim)
    check(case, 2e-6, deterministic=deterministic)


def test_a_chunk_reads_a_long_context_in_pieces() -> None:
    check(attention_case([1, 5], [17, 150], 3, 1, 16), 2e-6)


def test_blocks_of_queries_stay_with_their_rows(small_device: None) -> None:
    check(attention_case([50, 2, 43], [50, 90, 43], 3, 1, 16), 2e-6)


def test_half_precision_is_summed_in_single() -> None:
    check(attention_case([1, 1], [3, 90], 7, 1, 32, dtype=torch.float16), 2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_random_batches_agree(seed: int, small_device: None) -> None:
    rng = np.random.default_rng(seed)
    group, kv_heads = int(rng.integers(1, 6)), int(rng.integers(1, 3))
    queries = [int(n) for n in rng.choice([1, 1, 2, 9, 33], 3)]
    contexts = [n + int(rng.choice([0, 1, 15, 64])) for n in queries]
    head_dim = int(rng.choice([16, 20, 32]))
    case = attention_case(queries, contexts, group * kv_heads, kv_heads, head_dim, seed=seed)
    check(case, 2e-6, deterministic=bool(rng.integers(2)))


def one_sequence(case: AttentionCase, at: Sequence[int], slot: int) -> list[torch.Tensor]:
    """The last query of a context of the case's first row, computed in chunks of these sizes."""
    context = int(case.rows.contexts[0])
    answers = []
    for size in at:
        rows = case.rows._replace(
            slots=torch.tensor([slot], dtype=torch.int32),
            starts=torch.tensor([0, size], dtype=torch.int32),
            contexts=torch.tensor([context], dtype=torch.int32),
            max_queries=size,
        )
        query = case.query[case.rows.starts[1] - size : case.rows.starts[1]]
        out = attend(case._replace(query=query, rows=rows), deterministic=True)
        answers.append(out[size - 1])
    return answers


def test_a_deterministic_answer_is_the_same_alone_among_neighbours_and_in_any_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiply_by_rows(monkeypatch)
    case = attention_case([40, 3, 1], [290, 200, 17], 3, 1, 16)
    among = attend(case, deterministic=True)[39]
    for alone in one_sequence(case, [1, 2, 23, 40], int(case.rows.slots[0])):
        assert torch.equal(alone, among)
