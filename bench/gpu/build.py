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
from services.worker.engine.torch.cuda.build import CudaParts, Wish, build_runner, plain_linear
from services.worker.engine.torch.cuda.choice import Wanted, choose_cuda_parts
from services.worker.engine.torch.cuda.device import CudaDevice, Device
from services.worker.engine.torch.cuda.products import Fp8Linear, Int8Linear, Products, choose_products
from services.worker.engine.torch.memory import longest_context


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
    wanted = Wanted(quantization=quantization, deterministic=deterministic)  # type: ignore[arg-type]
    if place.on_card:
        parts = choose_cuda_parts(parsed, longest_context(wish, parsed), dtype, place.device, wanted)
    else:
        parts = dry_parts(device, wanted)
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


def dry_parts(device: Any, wanted: Wanted) -> CudaParts:
    """References in plain torch, each one launch for the tests' device; any quantisation."""
    reference = importlib.import_module("services.worker.engine.torch.cuda.reference")
    linear = dry_products(wanted.quantization).make_linear
    return CudaParts("dry", device.kernels(reference), linear, deterministic=wanted.deterministic)


def products_of(place: Place, quantization: Any, *, deterministic: bool = False) -> Products:
    """Production's. Raises EngineLoadError."""
    if not (place.on_card or deterministic):
        return dry_products(quantization)
    name = "kernels.products" if place.on_card else "product_reference"
    kernels = importlib.import_module(f"services.worker.engine.torch.cuda.{name}")
    return choose_products(quantization, deterministic=deterministic, device=place.device, kernels=kernels)


def dry_products(quantization: str) -> Products:
    """Without asking whether there is a card for them."""
    made = {"fp8": Fp8Linear, "int8": Int8Linear}.get(quantization)
    linear = plain_linear if made is None else partial(_dry_linear, made)
    return Products("", linear, deterministic=False)


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
