"""Attention over paged KV: each sequence gathers its own blocks, nothing is padded, no mask spans the batch.

Query heads that share a key-value head become rows of one query, so that each key is read once:
[1, kv_heads, group * queries, head_dim] against [1, kv_heads, context, head_dim].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from services.worker.engine.torch.operators import Batch


class Reader(NamedTuple):
    """One row of a step: which queries read which part of the pool."""

    start: int  # first of its queries among the step's tokens
    queries: int
    context: int  # tokens to read, its own queries included
    blocks: torch.Tensor  # [blocks] of the pool that hold them
    mask: torch.Tensor | None  # [group * queries, context] to add: 0 may be read, -inf may not; None: all may


def causal_mask(
    queries: int, context: int, group: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """Query i stands at position context - queries + i and reads up to there.

    As numbers in the queries' dtype: of a mask of booleans each layer would make these afresh.
    """
    if queries == 1:
        return None
    positions = torch.arange(context - queries, context, device=device)
    hidden = torch.arange(context, device=device) > positions.unsqueeze(1)  # [queries, context]
    zeros = torch.zeros(queries, context, dtype=dtype, device=device)
    return zeros.masked_fill_(hidden, -math.inf).repeat(group, 1)


def readers_of(batch: Batch, group: int, dtype: torch.dtype) -> list[Reader]:
    """The rows of a batch."""
    lists = (column.tolist() for column in batch.rows)
    return [_reader(batch, group, dtype, *row) for row in zip(*lists, strict=True)]


def _reader(
    batch: Batch, group: int, dtype: torch.dtype, slot: int, start: int, queries: int, context: int
) -> Reader:
    device = batch.tokens.device
    blocks = torch.from_numpy(batch.tables.blocks(slot, context).astype(np.int64)).to(device)
    mask = causal_mask(queries, context, group, dtype, device)
    return Reader(start, queries, context, blocks, mask)


def attend(
    query: torch.Tensor, pool: torch.Tensor, readers: list[Reader], block_size: int, output: torch.Tensor
) -> None:
    """[tokens, heads, head_dim] queries over a layer's pool, into an output of the same shape."""
    kv_heads, head_dim = pool.shape[2:]
    blocks = pool.view(2, -1, block_size * kv_heads * head_dim)
    for reader in readers:
        rows = slice(reader.start, reader.start + reader.queries)
        gathered = blocks.index_select(1, reader.blocks).view(2, -1, kv_heads, head_dim)
        keys, values = gathered[:, : reader.context].transpose(1, 2)  # each [kv_heads, context, head_dim]
        grouped = _group(query[rows], kv_heads)
        attended = functional.scaled_dot_product_attention(
            grouped.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), attn_mask=reader.mask
        )
        output[rows] = _ungroup(attended.squeeze(0), reader.queries)


def _group(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[queries, heads, head_dim] -> [kv_heads, group * queries, head_dim]"""
    queries, heads, head_dim = query.shape
    group = heads // kv_heads
    by_head = query.view(queries, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    return by_head.reshape(kv_heads, group * queries, head_dim)


def _ungroup(attended: torch.Tensor, queries: int) -> torch.Tensor:
    """[kv_heads, group * queries, head_dim] -> [queries, heads, head_dim]"""
    kv_heads, rows, head_dim = attended.shape
    by_head = attended.view(kv_heads, rows // queries, queries, head_dim).permute(2, 0, 1, 3)
    return by_head.reshape(queries, -1, head_dim)
