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
from services.worker.engine.torch.operators import Batch, HeadNorms, Operators, Rows
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


class Side:
    """Operators with a pool of their own, filled by them: how they lay it out is their own matter."""

    def __init__(self, operators: Operators, config: ModelConfig, dtype: torch.dtype) -> None:
        self.operators = operators
        self.pool = PagedKV(config, SPEC, dtype, CPU).layers[0]

    def fill(self, batch: Batch, merged: torch.Tensor, norms: HeadNorms | None = None) -> None:
        self.operators.on(batch).place(merged, norms, self.pool)

    def attended(self, batch: Batch, merged: torch.Tensor, norms: HeadNorms | None = None) -> torch.Tensor:
        step = self.operators.on(batch)
        return step.attend(step.place(merged, norms, self.pool), self.pool)


def before(rows: list[tuple[int, int, int]]) -> Batch:
    """What the rows of a step have behind them, as a step of its own."""
    return batch_of(
        [(slot, context - queries, context - queries) for slot, queries, context in rows if context > queries]
    )


def merged_of(config: ModelConfig, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(len(batch.tokens), config.qkv_rows).to(dtype)


def near(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(7)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4, 64), (8, 4, 64), (14, 2, 64), (9, 3, 16), (8, 1, 128), (6, 2, 48)])
@pytest.mark.parametrize("rows", [DECODES, MIXED])
def test_attention(heads: tuple[int, int, int], dtype: torch.dtype, rows: list[tuple[int, int, int]]) -> None:
    config = config_of(*heads)
    past, batch = before(rows), batch_of(rows)
    given, merged = merged_of(config, past, dtype), merged_of(config, batch, dtype)
    ours, plain = (Side(of(config, dtype), config, dtype) for of in (compiled_of, plain_of))
    for side in (ours, plain):
        side.fill(past, given)
    torch.testing.assert_close(ours.attended(batch, merged), plain.attended(batch, merged), **near(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_heads(dtype: torch.dtype) -> None:
    config = config_of(6, 2, 32, qk_norm=True)
    batch = batch_of([(slot, context, context) for slot, _, context in MIXED])
    merged = merged_of(config, batch, dtype)
    norms = HeadNorms(torch.rand(32).to(dtype), torch.rand(32).to(dtype))
    ours, plain = (Side(of(config, dtype), config, dtype) for of in (compiled_of, plain_of))
    expected = plain.attended(batch, merged, norms)
    torch.testing.assert_close(ours.attended(batch, merged, norms), expected, **near(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 33])
def test_norm_and_gate(dtype: torch.dtype, tokens: int) -> None:
    config = config_of(4, 2, 32)
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
    for operators in (compiled_of(config_of(4, 2, 32), dtype), plain_of(config_of(4, 2, 32), dtype)):
        values, scales = operators.quantise(x)
        error = ((values.float() - 128.0) * scales - x.float()).abs()
        assert (error <= scales * 0.5001).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so_and_stays_in_its_row(poison: float) -> None:
    config = config_of(4, 2, 32)
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


def test_a_poisoned_sequence_fails_alone() -> None:
    config = config_of(4, 2, 32)
    past, batch = before(DECODES), batch_of(DECODES)
    side = Side(compiled_of(config, torch.float32), config, torch.float32)
    given = merged_of(config, past, torch.float32)
    given[int(past.rows.starts[2]) + 5] = math.nan  # of the fourth sequence: the first has nothing behind it
    side.fill(past, given)
    attended = side.attended(batch, merged_of(config, batch, torch.float32))
    assert torch.isfinite(attended).flatten(1).all(-1).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("context", [1, 2, 31, 32, 33, 63, 65])
def test_what_another_sequence_left_in_a_block_is_never_read(context: int, dtype: torch.dtype) -> None:
    config = config_of(4, 2, 32)
    clean, dirty = (Side(compiled_of(config, dtype), config, dtype) for _ in range(2))
    dirty.pool.fill_(math.nan)
    prompt, next_token = batch_of([(2, context, context)]), batch_of([(2, 1, context + 1)])
    for batch in (prompt, next_token):
        merged = merged_of(config, batch, dtype)
        assert torch.equal(clean.attended(batch, merged), dirty.attended(batch, merged))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_threads_nor_neighbours_nor_chunks_change_a_bit(dtype: torch.dtype) -> None:
    config = config_of(8, 4, 64)
    together = batch_of([(0, 200, 200), (1, 70, 70), (2, 1, 1)])
    merged = merged_of(config, together, dtype)
    results = [
        Side(compiled_of(config, dtype, threads), config, dtype).attended(together, merged)
        for threads in (1, 2, 48)  # far more than cores: what threads share or free too early shows then
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    alone, at = Side(compiled_of(config, dtype), config, dtype), 0
    for chunk in (1, 63, 7, 100, 29):
        batch = batch_of([(0, chunk, at + chunk)])
        assert torch.equal(alone.attended(batch, merged[at : at + chunk]), results[0][at : at + chunk])
        at += chunk
