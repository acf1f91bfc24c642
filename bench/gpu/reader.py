"""A kernel that reads memory and does nothing else: the read-only bandwidth of the card."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 8192  # numbers a turn
_TURNS = 16


def programs(source: torch.Tensor) -> int:
    """Results that `read` writes."""
    return -(-source.numel() // (_BLOCK * _TURNS))


def read(source: torch.Tensor, out: torch.Tensor) -> None:
    """Sums of pieces of a flat tensor."""
    _read[(len(out),)](source, out, source.numel(), BLOCK=_BLOCK, TURNS=_TURNS, num_warps=8)


@triton.jit
def _read(source, out, count, BLOCK: tl.constexpr, TURNS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in range(TURNS):
        places = (program * TURNS + turn) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(source + places, mask=places < count, other=0.0)
    tl.store(out + program, tl.sum(total))
