"""A batch of random numbers that an attention is tried on and timed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from services.worker.engine.torch.cuda.arguments import AttentionRows
from services.worker.engine.torch.cuda.attention import Alternative, AttentionShape, HostRows
from services.worker.engine.torch.cuda.attention.others import pages_of

POOL_TOKENS = 1 << 16  # of a trial's memory
_MOST_REPEATS = 50

Timer = Callable[[Callable[[], None], float], float]  # a launch, seconds it may take: seconds of one


class Trial:
    """A batch of random numbers; sequences share blocks where there are too few."""

    def __init__(
        self,
        shape: AttentionShape,
        kernels: Any,
        rows: Sequence[tuple[int, int]],
        seed: int = 0,
    ) -> None:
        sizes = np.minimum(np.array(rows, np.int32), shape.width * shape.block_size)
        queries, contexts = np.ascontiguousarray(sizes.T)
        starts = np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)
        slots = np.arange(len(rows), dtype=np.int32)[::-1].copy()
        count, needed = int(starts[-1]), -(-contexts // shape.block_size)
        blocks = max(1, min(int(needed.sum()), POOL_TOKENS // shape.block_size))
        numbers = torch.Generator(shape.device).manual_seed(seed)
        made: dict[str, Any] = {"device": shape.device, "dtype": shape.dtype}
        self._shape = shape
        self.host = HostRows(slots, starts, contexts)
        on_device = [torch.from_numpy(each).to(shape.device) for each in self.host]
        self.rows = AttentionRows(on_device[0], on_device[1], on_device[2], int(queries.max()))
        self.query = torch.randn(count, shape.heads, shape.head_dim, generator=numbers, **made)
        self.pool = torch.randn(
            2, blocks + 1, shape.block_size, shape.kv_heads, shape.head_dim, generator=numbers, **made
        )
        self.tables = self._tables(blocks, seed)
        self.out = torch.empty_like(self.query)
        heads = (shape.heads, shape.kv_heads, shape.head_dim, shape.width)
        size = kernels.attention_workspace(len(rows), count, *heads)
        self.workspace = torch.empty(size, device=shape.device)

    def _tables(self, blocks: int, seed: int) -> torch.Tensor:
        shape = self._shape
        pages = pages_of(self.host, shape.block_size, shape.width)
        tables = np.zeros((len(self.host.slots), shape.width), np.int32)
        order = np.random.default_rng(seed).permutation(blocks)
        tables.reshape(-1)[pages.cells] = order[np.arange(len(pages.cells)) % blocks]
        return torch.from_numpy(tables).to(shape.device)

    def launch(self, candidate: Alternative) -> None:
        candidate(
            self.query, self.pool, self.rows, self.tables, self.out, self.workspace,
            scale=self._shape.scale, block_size=self._shape.block_size,
        )  # fmt: skip


def time_on_device(launch: Callable[[], None], seconds: float) -> float:
    """By events around as many launches as fit into the time, after two that compile and warm up."""
    for _ in range(2):
        launch()
    once = _elapsed(launch, 1)
    return _elapsed(launch, max(1, min(_MOST_REPEATS, int(seconds / max(once, 1e-6)) - 3)))


def _elapsed(launch: Callable[[], None], times: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(times):
        launch()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times
