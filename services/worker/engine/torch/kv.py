"""KV memory: one pool of blocks a layer, and the block tables of all slots."""

from __future__ import annotations

import math

import numpy as np
import torch

from services.worker.engine.torch.config import ModelConfig
from services.worker.scheduler.step import Int32, KVSpec, Step

_ALIGNMENT = 64  # bytes, as torch's own allocator


class PagedKV:
    """Keys and values of all blocks, [2, blocks * block_size, kv_heads, head_dim] a layer."""

    def __init__(self, config: ModelConfig, spec: KVSpec, dtype: torch.dtype, device: torch.device) -> None:
        shape = (2, spec.num_blocks * spec.block_size, config.kv_heads, config.head_dim)
        self.layers = [_zeros(shape, dtype, device) for _ in range(config.layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed memory. On the CPU the kernel gives zero pages at their first use: a start does not write
    gigabytes of zeros that no request may ever need."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(shape)


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """KV bytes of one block over all layers."""
    return 2 * config.layers * block_size * config.kv_heads * config.head_dim * dtype.itemsize


class SlotTables:
    """Which blocks each slot owns, in order; lives on the host."""

    def __init__(self, spec: KVSpec) -> None:
        self._block_size = spec.block_size
        width = -(-spec.max_len // spec.block_size)
        self.array = np.zeros((spec.max_seqs, width), np.int32)  # [slots, blocks of a sequence]
        self._lengths = [0] * spec.max_seqs

    def update(self, step: Step) -> None:
        """Empty the slots that begin, append the blocks that are new."""
        for init in step.inits:
            self._lengths[init.slot] = 0
        growing = np.flatnonzero(np.diff(step.block_offsets))
        for row in growing.tolist():
            blocks = step.block_ids[step.block_offsets[row] : step.block_offsets[row + 1]]
            self._append(int(step.slots[row]), blocks)

    def blocks(self, slot: int, tokens: int) -> Int32:
        """The blocks that hold the first `tokens` tokens of a slot."""
        return self.array[slot, : -(-tokens // self._block_size)]

    def places(self, slots: Int32, positions: Int32) -> Int32:
        """Rows of the pool where tokens at these positions of these slots are kept."""
        blocks, offsets = np.divmod(positions, self._block_size)
        return self.array[slots, blocks] * self._block_size + offsets

    def _append(self, slot: int, blocks: Int32) -> None:
        start = self._lengths[slot]
        self.array[slot, start : start + len(blocks)] = blocks
        self._lengths[slot] = start + len(blocks)
