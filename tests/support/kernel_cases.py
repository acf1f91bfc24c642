"""Random inputs for the kernels of a GPU, with outputs and workspaces that hold garbage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from services.worker.engine.torch.cuda.arguments import BITS, AttentionRows, GrammarMasks, SamplingState

GUARD = 2  # rows after an output that nobody may write


def garbage(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What was never written: NaN, or a number that no kernel gives."""
    return torch.full(shape, math.nan if dtype.is_floating_point else -77, dtype=dtype)


class AttentionCase(NamedTuple):
    """A batch over a pool whose memory is NaN wherever no token of a sequence is."""

    query: torch.Tensor
    pool: torch.Tensor
    rows: AttentionRows
    tables: torch.Tensor
    tokens: int  # of real rows; what follows is padding


def attention_case(
    queries: Sequence[int],
    contexts: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> AttentionCase:
    """Rows of so many queries and contexts, and one padded row: of one query if all have one."""
    rng = torch.Generator().manual_seed(seed)
    needed = [-(-context // block_size) for context in contexts]
    blocks, max_seqs = sum(needed) + 2, len(queries) + 1
    pool = garbage(2, blocks + 1, block_size, kv_heads, head_dim, dtype=dtype)
    pool[:, blocks] = 0  # the scratch block
    tables = torch.full((max_seqs + 1, max(needed) + 1), 10**6, dtype=torch.int32)
    tables[max_seqs] = blocks
    free = torch.randperm(blocks, generator=rng).int()
    slots = torch.randperm(max_seqs, generator=rng)[: len(queries)].int()
    for slot, context, count in zip(slots.tolist(), contexts, needed, strict=True):
        tables[slot, :count], free = free[:count], free[count:]
        for place in range(context):
            block = tables[slot, place // block_size]
            pool[:, block, place % block_size] = torch.randn(2, kv_heads, head_dim, generator=rng).to(dtype)
    padding = 1 if max(queries) == 1 else 0
    starts = torch.tensor([0, *queries, padding]).cumsum(0).int()
    rows = AttentionRows(
        torch.cat((slots, torch.tensor([max_seqs], dtype=torch.int32))),
        starts,
        torch.tensor([*contexts, 1], dtype=torch.int32),
        max(queries),
    )
    query = torch.randn(sum(queries) + 3, heads, head_dim, generator=rng).to(dtype)
    return AttentionCase(query, pool, rows, tables, sum(queries))


class SamplingCase(NamedTuple):
    """Rows that sample in all ways at once; the last one is padding, in the scratch slot."""

    logits: torch.Tensor
    slots: torch.Tensor
    indices: torch.Tensor
    masks: GrammarMasks | None
    state: SamplingState


def sampling_case(seed: int, *, rows: int = 7, vocab: int = 777) -> SamplingCase:
    """Every row has its own parameters; logits may tie."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(rows, vocab)) * rng.choice([0.01, 1, 3, 10])).float()
    if rng.random() < 0.3:
        logits = (logits * 2).round() / 2
    which = torch.full((rows,), -1, dtype=torch.int32)
    which[rows // 2] = 0
    masks = GrammarMasks(which, words(rng, 1, vocab)) if rng.random() < 0.7 else None
    slots = torch.tensor([*rng.permutation(rows - 1).tolist(), rows - 1], dtype=torch.int32)
    indices = torch.from_numpy(rng.integers(0, 9, rows).astype(np.int32))
    return SamplingCase(logits, slots, indices, masks, sampling_state(rng, rows, vocab))


def sampling_state(rng: np.random.Generator, slots: int, vocab: int) -> SamplingState:
    """Random parameters of all slots but the last one."""

    def column(values: Sequence[float], dtype: torch.dtype, neutral: float) -> torch.Tensor:
        drawn = torch.from_numpy(rng.choice(np.array(values, np.float64), slots)).to(dtype)
        drawn[-1] = neutral
        return drawn

    history = torch.from_numpy(rng.integers(0, 3, (slots, vocab)).astype(np.int16))
    history[torch.from_numpy(rng.random((slots, vocab)) < 0.1)] |= -(2**15)
    fp32, int32 = torch.float32, torch.int32
    return SamplingState(
        temperature=column([0, 0.7, 1.3], fp32, 0),
        top_k=column([0, 1, 5, 60, vocab + 3], int32, 0),
        top_p=column([1, 0.9, 0.3, 0.9999], torch.float64, 1),
        log_min_p=column([math.log(1e-45), math.log(0.1)], fp32, math.log(1e-45)),
        repetition=column([1, 1.3], fp32, 1),
        presence=column([0, 0.5], fp32, 0),
        frequency=column([0, 0.5], fp32, 0),
        seed=torch.from_numpy(rng.integers(-(2**31), 2**31, (slots, 2)).astype(np.int32)),
        min_tokens=column([0, 5], int32, 0),
        unstopped=words(rng, slots, vocab),
        history=history,
        last_token=garbage(slots, dtype=int32),
    )


def words(rng: np.random.Generator, rows: int, vocab: int) -> torch.Tensor:
    """Random bits of masks."""
    return torch.from_numpy(rng.integers(-(2**31), 2**31, (rows, -(-vocab // BITS))).astype(np.int32))
