"""From weights to a runner: plain values in, no model directory and no settings needed."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.cuda.device import Device
from services.worker.engine.torch.cuda.forward import Forward, Limits
from services.worker.engine.torch.cuda.inputs import StepBatch
from services.worker.engine.torch.cuda.operators import Attend, CudaOperators, Kernels
from services.worker.engine.torch.cuda.runner import CudaRunner
from services.worker.engine.torch.cuda.slots import DeviceSlots
from services.worker.engine.torch.linear import MakeLinear, PlainLinear
from services.worker.engine.torch.memory import BLOCK_TOKENS, MemoryWish, fit_spec, longest_context
from services.worker.engine.torch.model import Llama
from services.worker.engine.torch.rope import Rope
from services.worker.engine.torch.weights import WeightSource
from services.worker.scheduler.step import Capabilities

STEP_TOKENS = 8192  # of prompts in a step, at most: the scheduler's own default


class CudaParts(NamedTuple):
    """What a model is built with."""

    name: str  # of kernels and products: results differ in their last bits
    kernels: Kernels
    make_linear: MakeLinear
    attend: Attend | None = None  # instead of the kernels' own
    deterministic: bool = False  # ids do not depend on neighbours


class Wish(NamedTuple):
    """A `MemoryWish` for those without settings."""

    max_seqs: int = 256
    max_context: int | None = None
    kv_blocks: int | None = None
    kv_memory_bytes: int | None = None


def plain_linear(
    weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False
) -> PlainLinear:
    """A `MakeLinear`: as torch does it."""
    return PlainLinear(weight, bias)


def rehearse(config: ModelConfig, weights: WeightSource) -> None:
    """Take all weights of a model, in the order in which `build_model` does. Raises ModelFormatError."""
    parts = CudaParts("rehearsal", None, plain_linear)
    build_model(config, weights, parts, Wish(max_context=1), torch.device("cpu"))


@torch.inference_mode()
def build_model(
    config: ModelConfig,
    weights: WeightSource,
    parts: CudaParts,
    wish: MemoryWish,
    where: torch.device,
) -> tuple[Llama[StepBatch], CudaOperators]:
    """The model and its operators. Raises ModelFormatError."""
    rope = Rope(config, longest_context(wish, config), torch.float32, where)
    operators = CudaOperators(
        config, rope, BLOCK_TOKENS, parts.kernels, attend=parts.attend, deterministic=parts.deterministic
    )
    return Llama(config, weights, operators, parts.make_linear), operators


@torch.inference_mode()
def build_runner(
    config: ModelConfig,
    weights: WeightSource,
    parts: CudaParts,
    wish: MemoryWish,
    *,
    device: Device,
    dtype: torch.dtype,
    step_tokens: int = STEP_TOKENS,
    grammar: bool = False,
) -> CudaRunner:
    """A runner that serves. Raises ModelFormatError, NotEnoughMemory and torch.OutOfMemoryError.

    step_tokens: most prompt tokens that a step has; each running sequence adds one.
    """
    model, operators = build_model(config, weights, parts, wish, device.where)
    capabilities = Capabilities(run_ahead=1, deterministic=parts.deterministic, grammar=grammar)
    context = longest_context(wish, config)
    limits = Limits(wish.max_seqs, context, step_tokens + wish.max_seqs, capabilities.max_logprobs)
    slots = DeviceSlots(device, wish.max_seqs, -(-context // BLOCK_TOKENS), config.vocab_size)
    forward = Forward(device, config, model, operators, slots, limits, dtype=dtype, grammar=grammar)
    return CudaRunner(
        device,
        forward,
        limits,
        capabilities,
        partial(fit_spec, wish, config, dtype),
        block_size=BLOCK_TOKENS,
        vocab=config.vocab_size,
    )
