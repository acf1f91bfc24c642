"""The CUDA runner on a device of the tests, over kernels in plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from services.worker.engine.base import Runner
from services.worker.engine.torch.config import parse_config
from services.worker.engine.torch.cuda import reference
from services.worker.engine.torch.cuda.build import CudaParts, Wish, plain_linear
from services.worker.engine.torch.cuda.load import load_cuda_runner
from services.worker.engine.torch.cuda.runner import CudaRunner
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from tests.support.drive import Drive
from tests.support.fake_device import FakeDevice
from tests.support.tiny_llama import EOS_ID

WISH = Wish(max_seqs=32, kv_blocks=256)


def cuda_runner(
    model: Path,
    device: FakeDevice,
    wish: Wish = WISH,
    *,
    step_tokens: int = 512,
    grammar: bool = False,
    dtype: torch.dtype = torch.float32,
    piece_bytes: int = 100_000,
) -> CudaRunner:
    """A runner of a model directory."""
    config = parse_config(json.loads((model / "config.json").read_text()))
    return load_cuda_runner(
        tuple(sorted(model.glob("*.safetensors"))),
        config,
        CudaParts("reference", device.kernels(reference), plain_linear),
        wish,
        device=device,
        dtype=dtype,
        step_tokens=step_tokens,
        grammar=grammar,
        piece_bytes=piece_bytes,
    )


def cuda_drive(runner: Runner, settings: SchedulerSettings | None = None) -> Drive:
    """A scheduler around it."""
    facts = ModelFacts(vocab_size=512, eos_ids=(EOS_ID,), numerics_id=bytes(32))
    return Drive(runner, settings or SchedulerSettings(max_chunk=512), facts)
