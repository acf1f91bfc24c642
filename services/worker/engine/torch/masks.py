"""What grammars forbid, put into the logits of their rows."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import embedding

from services.worker.scheduler.step import Masks


def apply_masks(logits: torch.Tensor, masks: Masks) -> None:
    """Adds -inf to what may not be chosen, in place and in these rows only. logits: [rows, vocab] fp32."""
    packed = torch.from_numpy(masks.bits).to(logits.device).int()  # [masked, bytes]
    forbidden = embedding(packed, _eight_tokens(logits.device)).flatten(1)  # [masked, bytes * 8]
    for row, values in zip(masks.rows.tolist(), forbidden, strict=True):  # a gather of all would copy them
        logits[row] += values[: logits.shape[1]]


def _eight_tokens(device: torch.device) -> torch.Tensor:
    """0 where a byte's bit is set, else -inf, [256, 8]."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return torch.where(bits.bool(), 0.0, -math.inf).to(device)
