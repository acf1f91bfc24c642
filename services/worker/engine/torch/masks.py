"""What grammars forbid, put into the logits of their rows."""

from __future__ import annotations

import math

import numpy as np
import torch

from services.worker.scheduler.step import Masks


def apply_masks(logits: torch.Tensor, masks: Masks) -> None:
    """Sets to -inf what may not be chosen, in place and in these rows only. logits: [rows, vocab] fp32."""
    packed = torch.from_numpy(masks.bits).to(logits.device)  # [masked, bytes]
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    allowed = (packed.unsqueeze(-1) >> shifts & 1).bool().flatten(1)[:, : logits.shape[1]]  # [masked, vocab]
    rows = torch.from_numpy(masks.rows.astype(np.int64)).to(logits.device)
    logits[rows] = logits[rows].masked_fill(~allowed, -math.inf)
