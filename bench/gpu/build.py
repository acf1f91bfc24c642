"""A runner of production with random weights, in this process."""

from __future__ import annotations

import importlib
import time
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.gpu.models import RandomWeights
from bench.gpu.place import Place
from services.worker.engine.base import Runner
from services.worker.engine.torch.config import parse_config
from services.worker.engine.torch.cuda.attention import AttentionShape
from services.worker.engine.torch.cuda.attention_choice import choose_attention
from services.worker.engine.torch.cuda.build import CudaParts, Wish, build_runner, plain_linear
from services.worker.engine.torch.cuda.device import CudaDevice, Device
from services.worker.engine.torch.cuda.products import Fp8Linear, Int8Linear, Products, choose_products
from services.worker.engine.torch.memory import BLOCK_TOKENS, longest_context


class Built(NamedTuple):
    """A runner that is ready, and what it took."""

    runner: Runner
    vocab: int
    weights_s: float  # to make the weights on the device
    ready_s: float  # from weights in memory to serving, the one-time choice of attention included


class _Timed:
    """A `WeightSource` that takes note of the time it takes."""

    def __init__(self, weights: RandomWeights, place: Place) -> None:
        self._weights = weights
        self._place = place
        self.seconds = 0.0

    def take(self, name: str, *shape: int) -> torch.Tensor:
        return self._clocked(self._weights.take, name, *shape)

    def merge(self, rows_of: Any, *columns: int) -> torch.Tensor:
        return self._clocked(self._weights.merge, rows_of, *columns)

    def _clocked(self, make: Any, *arguments: Any) -> torch.Tensor:
        began_s = time.perf_counter()
        tensor: torch.Tensor = make(*arguments)
        self._place.synchronize()
        self.seconds += time.perf_counter() - began_s
        return tensor


def build(
    place: Place,
    config: dict[str, Any],
    *,
    quantization: str = "none",
    deterministic: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    max_seqs: int = 256,
    weights: RandomWeights | None = None,
) -> Built:
    """Raises EngineLoadError where this card, torch or model has no such products."""
    parsed = parse_config(config)
    timed = _Timed(weights or RandomWeights(place.device, dtype), place)
    began_s = time.perf_counter()
    device = device_of(place)
    wish = Wish(max_seqs=place.size(max_seqs, min(max_seqs, 8)), kv_blocks=128 if place.dry else None)
    width = -(-longest_context(wish, parsed) // BLOCK_TOKENS)
    shape = AttentionShape(
        parsed.heads, parsed.kv_heads, parsed.head_dim, BLOCK_TOKENS, width, dtype, place.device
    )
    parts = parts_of(place, device, shape, quantization=quantization, deterministic=deterministic)
    runner = build_runner(
        parsed,
        timed,
        parts,
        wish,
        device=device,
        dtype=dtype,
        step_tokens=place.size(8192, 512),
    )
    place.synchronize()
    ready_s = time.perf_counter() - began_s - timed.seconds
    return Built(runner, parsed.vocab_size, timed.seconds, ready_s)


def parts_of(
    place: Place, device: Device, shape: AttentionShape, *, quantization: str, deterministic: bool
) -> CudaParts:
    """What production chooses on this device. Raises EngineLoadError."""
    products = products_of(place, quantization, deterministic=deterministic)
    kernels = kernels_of(place, device)
    if not place.on_card:  # nothing to choose from, and nothing to time it with
        return CudaParts("dry", kernels, products.make_linear, deterministic=deterministic)
    choice = choose_attention(shape, kernels, deterministic=deterministic)
    print(choice, flush=True)
    return CudaParts(
        f"{choice.attention.name} {products.name}",
        kernels,
        products.make_linear,
        choice.attention,
        deterministic=deterministic and products.deterministic,
    )


def products_of(place: Place, quantization: str, *, deterministic: bool = False) -> Products:
    """Production's; a dry run has those in 8 bits without asking whether there is a card for them."""
    if not (place.on_card or deterministic):
        made = {"fp8": Fp8Linear, "int8": Int8Linear}.get(quantization)
        linear = plain_linear if made is None else partial(_dry_linear, made)
        return Products("", linear, deterministic=False)
    name = "product_kernels" if place.on_card else "product_reference"
    kernels = importlib.import_module(f"services.worker.engine.torch.cuda.{name}")
    return choose_products(quantization, deterministic=deterministic, device=place.device, kernels=kernels)  # type: ignore[arg-type]


def _dry_linear(
    made: Any, weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False
) -> Any:
    return made(weight, bias, importlib.import_module("services.worker.engine.torch.cuda.product_reference"))


def device_of(place: Place) -> Device:
    """The card; of a dry run the tests' device, which puts work off as long as it may."""
    if place.on_card:
        return CudaDevice(place.device)
    device: Device = importlib.import_module("tests.support.fake_device").FakeDevice()
    return device


def kernels_of(place: Place, device: Any) -> Any:
    """The kernels; of a dry run the references, each one launch for the tests' device."""
    return place.kernels() if place.on_card else device.kernels(place.kernels())
