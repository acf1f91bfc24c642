"""Attention of others with the signature of ours: varlen, flashinfer, torch's own over gathered blocks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from services.worker.engine.torch.attention import Reader, causal_mask
from services.worker.engine.torch.attention import attend as attend_readers
from services.worker.engine.torch.cuda.arguments import AttentionRows
from services.worker.engine.torch.cuda.attention import AttentionShape, HostRows

if TYPE_CHECKING:
    from services.worker.scheduler.step import Int32, Int64

_FLASHINFER_BYTES = 128 << 20  # of partial results, as its documentation advises
_PLANS = 2  # of flashinfer: the step under way reads one while the next is made
_MOST_HIDDEN = 1 << 26  # numbers of one mask


class Unavailable(Exception):
    """An alternative cannot be had here; the message is the reason."""


class VarlenAttention:
    """torch.nn.attention.varlen over a block table. Flash Attention 2 in it takes pages of 256 tokens only, 3
    any: the trial shows which it is."""

    name = "varlen"
    captures = True

    def __init__(self, module: ModuleType) -> None:
        """Raises Unavailable where this torch takes no block table."""
        self._attend = getattr(module, "varlen_attn_out", None)
        taken = inspect.signature(self._attend).parameters if self._attend else {}
        if not {"out", "block_table", "seqused_k", "enable_gqa", "window_size"} <= {*taken}:
            raise Unavailable(f"varlen_attn_out of torch {torch.__version__} takes no block table")

    def plan(self, rows: HostRows, tables: torch.Tensor) -> None:
        """Reads all on the device."""

    def __call__(
        self,
        query: torch.Tensor,
        pool: torch.Tensor,
        rows: AttentionRows,
        tables: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        scale: float,
        block_size: int,
        deterministic: bool = False,
    ) -> None:
        assert self._attend is not None, "checked at the start"
        self._attend(
            out, query, pool[0], pool[1], rows.starts, None, rows.max_queries, tables.shape[1] * block_size,
            scale=scale, window_size=(-1, 0), enable_gqa=query.shape[1] != pool.shape[-2],
            seqused_k=rows.contexts, block_table=tables.index_select(0, rows.slots),
            num_splits=1 if deterministic else None,
        )  # fmt: skip


class FlashInferAttention:
    """flashinfer's prefill over paged KV. What it plans it copies from pinned memory of its own: no plan is
    made anew before the device has that, so there are two, in turns."""

    name = "flashinfer"
    captures = False

    def __init__(
        self,
        module: Any,
        shape: AttentionShape,
        *,
        backend: str = "auto",
        event: type[Any] | None = None,
    ) -> None:
        """module: flashinfer; event: what to make events of, as torch.cuda.Event."""
        space = torch.empty(_FLASHINFER_BYTES, dtype=torch.uint8, device=shape.device)
        made = module.BatchPrefillWithPagedKVCacheWrapper
        self._shape = shape
        event = event or torch.cuda.Event
        self._plans = [(made(space, "NHD", backend=backend), event()) for _ in range(_PLANS)]
        self._turn = 0

    def plan(self, rows: HostRows, tables: torch.Tensor) -> None:
        """Copies little, waits for nothing but the step before the last one."""
        shape = self._shape
        self._turn = (self._turn + 1) % _PLANS
        wrapper, copied = self._plans[self._turn]
        copied.synchronize()
        pages = pages_of(rows, shape.block_size, shape.width)
        cells = torch.from_numpy(pages.cells).to(shape.device, non_blocking=True)
        wrapper.plan(
            torch.from_numpy(rows.starts),
            torch.from_numpy(pages.starts),
            tables.view(-1).index_select(0, cells),
            torch.from_numpy(pages.last),
            shape.heads, shape.kv_heads, shape.head_dim, shape.block_size,
            causal=True, sm_scale=shape.scale, q_data_type=shape.dtype, kv_data_type=shape.dtype,
        )  # fmt: skip
        copied.record()

    def __call__(
        self,
        query: torch.Tensor,
        pool: torch.Tensor,
        rows: AttentionRows,
        tables: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        scale: float,
        block_size: int,
        deterministic: bool = False,
    ) -> None:
        wrapper, _ = self._plans[self._turn]
        wrapper.run(query, (pool[0], pool[1]), out=out)


class GatheredAttention:
    """torch's own over the blocks of each sequence, gathered: slow, and wherever torch is."""

    name = "sdpa"
    captures = False

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        self._pieces: list[_Piece] = []

    def plan(self, rows: HostRows, tables: torch.Tensor) -> None:
        """Gathers nothing yet."""
        self._pieces = list(_pieces(rows, tables, self._shape))

    def __call__(
        self,
        query: torch.Tensor,
        pool: torch.Tensor,
        rows: AttentionRows,
        tables: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        scale: float,
        block_size: int,
        deterministic: bool = False,
    ) -> None:
        group = query.shape[1] // pool.shape[-2]
        for piece in self._pieces:
            mask = causal_mask(piece.queries, piece.context, group, query.dtype, query.device)
            attend_readers(query, pool.flatten(1, 2), [Reader(*piece, mask)], block_size, out)


class _Piece(NamedTuple):
    """A `Reader` without its mask."""

    start: int
    queries: int
    context: int
    blocks: torch.Tensor


def _pieces(rows: HostRows, tables: torch.Tensor, shape: AttentionShape) -> Iterator[_Piece]:
    """Rows by as many queries as a mask may have."""
    group = shape.heads // shape.kv_heads
    columns = (rows.slots, rows.starts[:-1], rows.starts[1:], rows.contexts)
    for slot, start, end, context in zip(*(column.tolist() for column in columns), strict=True):
        most = max(1, _MOST_HIDDEN // (group * context))
        for first in range(start, end, most):
            queries = min(most, end - first)
            read = context - (end - first - queries)
            yield _Piece(first, queries, read, tables[slot, : -(-read // shape.block_size)].long())


class Pages(NamedTuple):
    """The blocks of a step's sequences, one after the other."""

    starts: Int32  # [n + 1]
    cells: Int64  # [blocks], of the tables, where each block's number stands
    last: Int32  # [n], tokens in the last block of each


def pages_of(rows: HostRows, block_size: int, width: int) -> Pages:
    """width: blocks of a table."""
    counts = -(-rows.contexts // block_size)
    starts = np.concatenate([[0], np.cumsum(counts)])
    row = np.repeat(np.arange(len(counts)), counts)
    cells = np.arange(starts[-1]) - starts[row] + rows.slots[row].astype(np.int64) * width
    return Pages(starts.astype(np.int32), cells, (rows.contexts - (counts - 1) * block_size).astype(np.int32))
