"""A step as the device reads it: one set of inputs at fixed places, so that a graph serves every step of its
bucket. The host writes them into pinned memory by arrays, never by rows; padding is written with them.

    bytes   0 ─────────────▶ of the bucket ──────────────────────────▶ of the step
            rows, tokens of the bucket      changes of slots, rows that ask for log-probabilities
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from services.worker.engine.torch.cuda.arguments import AttentionRows
from services.worker.scheduler.step import LAST_SAMPLED, Int32, Int64, Step, StepCost

_ALIGNMENT = 32  # words: kernels load 16 bytes at once, whatever the bucket
WORD = 4  # bytes


class Bucket(NamedTuple):
    """Shapes of a step, padding included."""

    rows: int
    tokens: int
    max_queries: int  # of a row

    @property
    def decodes(self) -> bool:
        """One token a row."""
        return self.max_queries == 1


class Layout(NamedTuple):
    """Where a bucket's inputs lie, each (first word, words)."""

    slots: tuple[int, int]  # whose tables a row reads
    samplers: tuple[int, int]  # the slot that a row chooses for; scratch: for none
    starts: tuple[int, int]
    contexts: tuple[int, int]
    indices: tuple[int, int]  # of the outputs
    last: tuple[int, int]
    masks: tuple[int, int]  # index of the row's mask; -1: none
    ids: tuple[int, int]  # of tokens; LAST_SAMPLED: the owner's last token
    owners: tuple[int, int]  # slots of tokens
    cells: tuple[int, int]  # of the tables, whose blocks the tokens lie in
    offsets: tuple[int, int]  # in these blocks
    positions: tuple[int, int]

    @property
    def size(self) -> int:
        """Words, aligned."""
        return _aligned(sum(self.positions))


@lru_cache(maxsize=1024)
def layout_of(bucket: Bucket) -> Layout:
    """The layout of a bucket."""
    rows, tokens = bucket.rows, bucket.tokens
    sizes = (rows, rows, rows + 1, rows, rows, rows, rows, *(tokens,) * 5)
    starts = np.cumsum([0, *map(_aligned, sizes[:-1])]).tolist()
    return Layout(*zip(starts, sizes, strict=True))


class Geometry(NamedTuple):
    """What turns positions into places of the pool."""

    scratch: int  # slot
    width: int  # of a table
    block_size: int


def fill(words: Int32, bucket: Bucket, step: Step, geometry: Geometry) -> None:
    """Write a step's inputs, and padding up to the bucket, into the bucket's words."""
    layout = layout_of(bucket)
    count, total = len(step.slots), len(step.tokens)
    ends = np.cumsum(step.query_lens, dtype=np.int32)
    begins = ends - step.query_lens
    row_of = np.repeat(np.arange(count), step.query_lens)  # [tokens]
    samplers = np.where(step.samples, step.slots, geometry.scratch)
    _put(words, layout.slots, step.slots, geometry.scratch)
    _put(words, layout.samplers, samplers, geometry.scratch)
    _put(words, layout.contexts, step.context_lens + step.query_lens, 1 if bucket.decodes else 0)
    _put(words, layout.indices, step.output_indices, 0)
    _put(words, layout.last, ends - 1, 0)
    _put_starts(words, layout, bucket, begins, total)
    _put_masks(words, layout, step)
    positions = np.arange(total, dtype=np.int32) + (step.context_lens - begins)[row_of]
    blocks, offsets = np.divmod(positions, geometry.block_size)
    owners = step.slots[row_of]
    _put(words, layout.ids, step.tokens, 0)
    _put(words, layout.owners, owners, geometry.scratch)
    _put(words, layout.cells, owners * geometry.width + blocks, geometry.scratch * geometry.width)
    _put(words, layout.offsets, offsets, 0)
    _put(words, layout.positions, positions, 0)


def _put_starts(words: Int32, layout: Layout, bucket: Bucket, begins: Int32, total: int) -> None:
    """Padded rows own one padded token each in a bucket of decodes, otherwise none."""
    first, size = layout.starts
    words[first : first + len(begins)] = begins
    more = size - len(begins)
    rest = total + np.arange(more) if bucket.decodes else total
    words[first + len(begins) : first + size] = rest


def _put_masks(words: Int32, layout: Layout, step: Step) -> None:
    first, size = layout.masks
    words[first : first + size] = -1
    if step.masks is not None:
        words[first + step.masks.rows] = np.arange(len(step.masks.rows), dtype=np.int32)


def _put(words: Int32, place: tuple[int, int], values: Int32 | Int64, padding: int) -> None:
    first, size = place
    words[first : first + len(values)] = values
    words[first + len(values) : first + size] = padding


class Inputs(NamedTuple):
    """A bucket's inputs on the device."""

    rows: AttentionRows
    samplers: torch.Tensor  # int32 [rows], as in Layout; the others likewise
    indices: torch.Tensor
    masks: torch.Tensor
    last: torch.Tensor
    ids: torch.Tensor  # int32 [tokens]
    owners: torch.Tensor
    cells: torch.Tensor
    offsets: torch.Tensor
    positions: torch.Tensor


def inputs_of(memory: torch.Tensor, bucket: Bucket) -> Inputs:
    """Views of the device's int32 words."""
    layout = layout_of(bucket)
    views = {
        name: memory[start : start + size] for name, (start, size) in zip(layout._fields, layout, strict=True)
    }
    slots, starts, contexts = (views.pop(name) for name in ("slots", "starts", "contexts"))
    return Inputs(rows=AttentionRows(slots, starts, contexts, bucket.max_queries), **views)


class StepBatch(NamedTuple):
    """What the model and its operators read of a step."""

    tokens: torch.Tensor  # int32 [tokens]
    positions: torch.Tensor  # int32 [tokens]
    places: torch.Tensor  # int32 [tokens], rows of the pool
    last: torch.Tensor  # int32 [rows]
    rows: AttentionRows


def expand(inputs: Inputs, tables: torch.Tensor, last_token: torch.Tensor, block_size: int) -> StepBatch:
    """What only the device knows: tokens that the host has not seen, and places by the tables."""
    unseen = last_token.index_select(0, inputs.owners)
    tokens = torch.where(inputs.ids == LAST_SAMPLED, unseen, inputs.ids)
    blocks = tables.view(-1).index_select(0, inputs.cells)
    places = torch.add(inputs.offsets, blocks, alpha=block_size)
    return StepBatch(tokens, inputs.positions, places, inputs.last, inputs.rows)


def empty_step() -> Step:
    """Nothing but padding, for warming up."""
    none, wide = np.zeros(0, np.int32), np.zeros(0, np.int64)
    return Step(
        number=0,
        slots=none,
        query_lens=none,
        context_lens=none,
        tokens=none,
        samples=np.zeros(0, np.bool_),
        output_indices=wide,
        block_offsets=np.zeros(1, np.int32),
        block_ids=none,
        inits=(),
        cost=StepCost(0.0, 0.0, 0.0, 0.0, 0.0),
    )


def _aligned(words: int) -> int:
    return -(-words // _ALIGNMENT) * _ALIGNMENT
