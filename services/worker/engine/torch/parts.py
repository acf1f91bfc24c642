"""Which operators and which products a model is made of on a CPU: the choice, in one place."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import NamedTuple

import torch

from services.common.lines import say
from services.worker.engine.errors import EngineLoadError
from services.worker.engine.settings import Quantization
from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.linear import Int8Linear, MakeLinear, can_quantise, make_linear
from services.worker.engine.torch.operators import Batch, Operators
from services.worker.engine.torch.plain import PlainOperators
from services.worker.engine.torch.rope import Rope
from services.worker.scheduler.step import KVSpec


class Parts(NamedTuple):
    """What a model is built with."""

    name: str  # of the operators: results differ in their last bits
    operators: Operators[Batch]
    make_linear: MakeLinear
    deterministic: bool  # ids do not depend on neighbours


def choose_parts(
    config: ModelConfig,
    spec: KVSpec,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization,
    *,
    deterministic: bool = False,
) -> Parts:
    """The fastest that this machine has, with ids that do not depend on neighbours where that is asked for.

    Raises EngineLoadError for a quantisation, or for such ids, that cannot be had.
    """
    parts = _choose(config, spec, dtype, device, quantization, deterministic=deterministic)
    if deterministic and not parts.deterministic:
        raise EngineLoadError(
            f"deterministic ids are not to be had on {device}: some of this model's sizes would be served by "
            "torch's products or attention; leave deterministic out"
        )
    return parts


def _choose(
    config: ModelConfig,
    spec: KVSpec,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization,
    *,
    deterministic: bool,
) -> Parts:
    quantised = quantization == "int8"
    if quantization == "fp8" or (quantised and not (device.type == "cpu" and can_quantise())):
        raise EngineLoadError(
            f"{quantization} is not to be had on {device} with torch {torch.__version__}; use none"
        )
    if device.type == "cpu":
        compiled = _compiled(config, spec, dtype, quantised=quantised, deterministic=deterministic)
        if compiled is not None:
            return compiled
        say("attention and norms take several times as long without kernels of our own")
    plain = PlainOperators(config, Rope(config, spec.max_len, dtype, device), spec.block_size)
    linear = partial(Int8Linear, quantise=plain.quantise) if quantised else make_linear
    return Parts("plain", plain, linear, deterministic=False)  # torch's products and attention: by the batch


def _compiled(
    config: ModelConfig, spec: KVSpec, dtype: torch.dtype, *, quantised: bool, deterministic: bool
) -> Parts | None:
    """None, and a line that says so, where there is no numba or a model's heads do not fit."""
    if not importlib.util.find_spec("numba"):
        say("numba is not installed")
        return None
    from services.worker.engine.torch.compiled.attention import can_attend
    from services.worker.engine.torch.compiled.operators import CompiledOperators

    heads = config.heads, config.kv_heads, config.head_dim
    if not can_attend(*heads, spec.block_size):
        say("{} heads, {} of keys, of {} numbers fit no kernel".format(*heads))
        return None
    compiled = CompiledOperators(
        config,
        Rope(config, spec.max_len, torch.float32, torch.device("cpu")),
        spec.block_size,
        dtype=dtype,
        threads=torch.get_num_threads(),
        quantised=quantised,
        deterministic=deterministic,
    )
    linear = compiled.int8_linear if quantised else compiled.linear
    return Parts(compiled.name, compiled, linear, deterministic=compiled.deterministic)
