"""The compiled operators do what the plain ones do, whatever the shapes, the dtype and the threads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from services.worker.engine.torch.compiled.operators import CompiledOperators
from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.kv import PagedKV, SlotTables
from services.worker.engine.torch.operators import Batch, HeadNorms, Rows
from services.worker.engine.torch.plain import PlainOperators
from services.worker.engine.torch.rope import Rope
from services.worker.scheduler.step import KVSpec

SPEC = KVSpec(block_size=64, num_blocks=24, max_seqs=6, max_len=512)
CPU = torch.device("cpu")
DECODES = [(0, 1, 1), (1, 1, 63), (2, 1, 64), (3, 1, 65), (4, 1, 250)]  # slot, queries, context
MIXED = [(0, 1, 130), (1, 70, 200), (2, 1, 17), (3, 64, 64)]


def config_of(heads: int, kv_heads: int, head_dim: int, *, qk_norm: bool = False) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        layers=1,
        hidden=heads * head_dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=200,
        vocab_size=64,
        context=512,
        norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        tied=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=qk_norm,
    )


def compiled_of(config: ModelConfig, dtype: torch.dtype, threads: int = 2) -> CompiledOperators:
    rope = Rope(config, SPEC.max_len, torch.float32, CPU)
    return CompiledOperators(config, rope, SPEC.block_size, dtype=dtype, threads=threads, quantised=True)


def plain_of(config: ModelConfig, dtype: torch.dtype) -> PlainOperators:
    return PlainOperators(config, Rope(config, SPEC.max_len, dtype, CPU), SPEC.block_size)


def batch_of(rows: list[tuple[int, int, int]]) -> Batch:
    """Slots own blocks scattered over the pool."""
    tables = SlotTables(SPEC)
    tables.array[:] = np.random.default_rng(1).integers(0, 24, tables.array.shape)
    blocks = np.random.default_rng(2).permutation(24).reshape(6, 4)
    tables.array[:, :4] = blocks
    slots, queries, contexts = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    starts = (np.cumsum(queries) - queries).astype(np.int32)
    row_of = np.repeat(np.arange(len(rows)), queries)
    positions = (np.arange(queries.sum()) - starts[row_of] + (contexts - queries)[row_of]).astype(np.int32)
    return Batch(
        tokens=torch.zeros(int(queries.sum()), dtype=torch.int64),
        positions=torch.from_numpy(positions.astype(np.int64)),
        places=torch.from_numpy(tables.places(slots[row_of], positions).astype(np.int64)),
        rows=Rows(slots, starts, queries, contexts),
        tables=tables,
        last=torch.zeros(0, dtype=torch.int64),
    )


def pool_of(config: ModelConfig, dtype: torch.dtype) -> torch.Tensor:
    pool = PagedKV(config, SPEC, dtype, CPU).layers[0]
    return pool.copy_(torch.randn(pool.shape))


def near(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(7)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4, 64), (8, 4, 64), (14, 2, 64), (9, 3, 16), (8, 1, 128)])
@pytest.mark.parametrize("rows", [DECODES, MIXED])
def test_attention(heads: tuple[int, int, int], dtype: torch.dtype, rows: list[tuple[int, int, int]]) -> None:
    config = config_of(*heads)
    batch, pool = batch_of(rows), pool_of(config, dtype)
    query = torch.randn(len(batch.tokens), config.heads, config.head_dim).to(dtype)
    expected = plain_of(config, dtype).on(batch).attend(query, pool)
    attended = compiled_of(config, dtype).on(batch).attend(query, pool)
    torch.testing.assert_close(attended, expected, **near(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_placing(dtype: torch.dtype, qk_norm: bool) -> None:
    config = config_of(6, 2, 32, qk_norm=qk_norm)
    batch, pool = batch_of(MIXED), pool_of(config, dtype)
    other = pool.clone()
    merged = torch.randn(len(batch.tokens), config.qkv_rows).to(dtype)
    norms = HeadNorms(torch.rand(32).to(dtype), torch.rand(32).to(dtype)) if qk_norm else None
    expected = plain_of(config, dtype).on(batch).place(merged, norms, pool)
    query = compiled_of(config, dtype).on(batch).place(merged, norms, other)
    torch.testing.assert_close(query, expected, **near(dtype))
    torch.testing.assert_close(other, pool, **near(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 33])
def test_norm_and_gate(dtype: torch.dtype, tokens: int) -> None:
    config = config_of(4, 2, 24)
    batch = batch_of(DECODES)
    compiled, plain = compiled_of(config, dtype).on(batch), plain_of(config, dtype).on(batch)
    weight = torch.rand(config.hidden).to(dtype)
    for delta in (None, torch.randn(tokens, config.hidden).to(dtype)):
        hidden = torch.randn(tokens, config.hidden).to(dtype)
        other = hidden.clone()
        expected = plain.add_norm(hidden, delta, weight)
        torch.testing.assert_close(compiled.add_norm(other, delta, weight), expected, **near(dtype))
        torch.testing.assert_close(other, hidden, rtol=0, atol=0)
    merged = (torch.randn(tokens, 2 * config.ffn) * 20).to(dtype)
    torch.testing.assert_close(compiled.gate(merged), plain.gate(merged), **near(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_rows_stay_within_half_a_step(dtype: torch.dtype) -> None:
    x = (torch.randn(19, 100) * torch.logspace(-6, 6, 19).unsqueeze(1)).to(dtype)
    for operators in (compiled_of(config_of(4, 2, 24), dtype), plain_of(config_of(4, 2, 24), dtype)):
        values, scales = operators.quantise(x)
        error = ((values.float() - 128.0) * scales - x.float()).abs()
        assert (error <= scales * 0.5001).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so_and_stays_in_its_row(poison: float) -> None:
    config = config_of(4, 2, 24)
    compiled = compiled_of(config, torch.bfloat16)
    batch = batch_of(DECODES)
    hidden = torch.randn(5, config.hidden).bfloat16()
    hidden[2, 5] = poison
    normed = compiled.on(batch).add_norm(hidden, None, torch.ones(config.hidden).bfloat16())
    merged = torch.randn(5, 2 * config.ffn).bfloat16()
    merged[2, config.ffn + 7] = poison
    gated = compiled.on(batch).gate(merged)
    _, scales = compiled.quantise(hidden)
    for rows in (normed, gated, scales):
        assert torch.isfinite(rows).all(-1).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("part", [0, 1])
def test_a_poisoned_block_fails_its_sequence_alone(part: int) -> None:
    config = config_of(4, 2, 24)
    batch, pool = batch_of(DECODES), pool_of(config, torch.float32)
    pool[part, int(batch.tables.array[3, 0]) * 64 + 5] = math.nan
    query = torch.randn(5, config.heads, config.head_dim)
    attended = compiled_of(config, torch.float32).on(batch).attend(query, pool)
    assert torch.isfinite(attended).flatten(1).all(-1).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_threads_nor_neighbours_change_a_bit(dtype: torch.dtype) -> None:
    config = config_of(8, 4, 64)
    pool = pool_of(config, dtype)
    query = torch.randn(len(DECODES), config.heads, config.head_dim).to(dtype)
    together = [
        compiled_of(config, dtype, threads).on(batch_of(DECODES)).attend(query, pool) for threads in (1, 2)
    ]
    assert torch.equal(*together)
    for index, row in enumerate(DECODES):
        alone = compiled_of(config, dtype).on(batch_of([row])).attend(query[index : index + 1], pool)
        assert torch.equal(alone[0], together[0][index])
