"""Inputs of attention over paged KV: blocks in no order, contexts of one length or mixed ones."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from bench.gpu.place import Place
from services.worker.engine.torch.cuda.arguments import AttentionRows
from services.worker.engine.torch.cuda.attention import HostRows

BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Of a layer."""

    queries: int
    keys: int
    dim: int

    @property
    def kv_bytes(self) -> int:
        """Of a token in bf16."""
        return 2 * self.keys * self.dim * 2


class Paged:
    """A pool, tables and a batch. Row i has `queries[i]` queries at the end of `contexts[i]` tokens."""

    def __init__(
        self,
        place: Place,
        heads: Heads,
        queries: list[int],
        contexts: list[int],
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> None:
        count = [-(-context // BLOCK) for context in contexts]
        width, blocks = max(count), sum(count)
        self.heads = heads
        self.queries, self.contexts = queries, contexts
        self.dtype = dtype
        self.pool = place.random(2, blocks + 1, BLOCK, heads.keys, heads.dim, dtype=dtype, seed=seed)
        self.query = place.random(sum(queries), heads.queries, heads.dim, dtype=dtype, seed=seed + 1)
        self.out = torch.full_like(self.query, torch.nan)
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).int()
        tables = torch.full((len(contexts) + 1, width), blocks, dtype=torch.int32)
        first = 0
        for row, taken in enumerate(count):
            tables[row, :taken] = order[first : first + taken]
            first += taken
        self.tables = tables.to(place.device)
        starts = torch.cumsum(torch.tensor([0, *queries]), 0).int()
        self.rows = AttentionRows(
            torch.arange(len(contexts), dtype=torch.int32, device=place.device),
            starts.to(place.device),
            torch.tensor(contexts, dtype=torch.int32, device=place.device),
            max(queries),
        )

    @property
    def scale(self) -> float:
        """Of scores."""
        return float(self.heads.dim**-0.5)

    @property
    def on_host(self) -> HostRows:
        """The rows as the host knows them."""
        starts = np.cumsum([0, *self.queries], dtype=np.int32)
        slots = np.arange(len(self.contexts), dtype=np.int32)
        return HostRows(slots, starts, np.array(self.contexts, np.int32))

    @property
    def kv_bytes(self) -> float:
        """That have to be read."""
        return float(sum(self.contexts) * self.heads.kv_bytes * self.dtype.itemsize / 2)

    @property
    def flops(self) -> float:
        """Of scores and sums, of what is not hidden."""
        pairs = sum(
            queries * context - queries * (queries - 1) // 2
            for queries, context in zip(self.queries, self.contexts, strict=True)
        )
        return 4.0 * pairs * self.heads.queries * self.heads.dim

    def workspace(self, kernels: ModuleType, *, deterministic: bool = False) -> torch.Tensor:
        """For `attend` of this batch."""
        heads = self.heads
        numbers = kernels.attention_workspace(
            len(self.contexts),
            sum(self.queries),
            heads.queries,
            heads.keys,
            heads.dim,
            self.tables.shape[1],
            deterministic=deterministic,
        )
        return torch.empty(max(1, int(numbers)), dtype=torch.float32, device=self.query.device)

    def attend(self, function: Any, workspace: torch.Tensor, *, deterministic: bool = False) -> torch.Tensor:
        """Through a function with the signature of `kernels.attend`, into `out`."""
        function(
            self.query,
            self.pool,
            self.rows,
            self.tables,
            self.out,
            workspace,
            scale=self.scale,
            block_size=BLOCK,
            deterministic=deterministic,
        )
        return self.out

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of rows of one context each, [rows, heads, tokens, head_dim], for SDPA."""
        assert len(set(self.contexts)) == 1
        assert len(set(self.queries)) == 1
        rows, context = len(self.contexts), self.contexts[0]
        used = self.tables[:rows].long()
        keys, values = (
            part[used].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for part in self.pool
        )
        query = self.query.view(rows, self.queries[0], self.heads.queries, self.heads.dim).transpose(1, 2)
        return query.contiguous(), keys, values

    def as_fp32(self) -> Paged:
        """The same batch, upcast, with an output of its own."""
        wide = object.__new__(Paged)
        wide.__dict__.update(self.__dict__)
        wide.pool, wide.query = self.pool.float(), self.query.float()
        wide.out = torch.full_like(wide.query, torch.nan)
        wide.dtype = torch.float32
        return wide
