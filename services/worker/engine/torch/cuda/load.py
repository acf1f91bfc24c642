"""A model directory on a CUDA device: weights read ahead, the runner built around them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.cuda.build import CudaParts, build_runner, rehearse
from services.worker.engine.torch.cuda.device import Device
from services.worker.engine.torch.cuda.runner import CudaRunner
from services.worker.engine.torch.cuda.weights import PIECE_BYTES, open_pinned_weights
from services.worker.engine.torch.memory import MemoryWish


def load_cuda_runner(
    paths: tuple[Path, ...],
    config: ModelConfig,
    parts: CudaParts,
    wish: MemoryWish,
    *,
    device: Device,
    dtype: torch.dtype,
    step_tokens: int,
    grammar: bool,
    piece_bytes: int = PIECE_BYTES,
) -> CudaRunner:
    """A runner that serves. Raises EngineLoadError, torch.OutOfMemoryError."""
    order = partial(rehearse, config)
    with open_pinned_weights(paths, order, dtype=dtype, device=device, piece_bytes=piece_bytes) as weights:
        return build_runner(
            config,
            weights,
            parts,
            wish,
            device=device,
            dtype=dtype,
            step_tokens=step_tokens,
            grammar=grammar,
        )
