"""How fast weights come from files to the device, by production's threads and pinned memory.

The files are in the page cache: what a disk adds is the disk's. Beside it one copy of as much from pinned
memory, which is what the way to the device can do.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.gpu.build import device_of
from bench.gpu.models import RandomWeights
from bench.gpu.place import Place
from bench.results_contract import Row, row
from services.worker.engine.torch.config import ModelConfig, parse_config
from services.worker.engine.torch.cuda.build import rehearse
from services.worker.engine.torch.cuda.weights import open_pinned_weights

_RUNS = 3
_COPY_BYTES = 1 << 30


class _Kept:
    """A `WeightSource` that keeps all that is taken."""

    def __init__(self, weights: RandomWeights) -> None:
        self._weights = weights
        self.tensors: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        self.tensors[name] = self._weights.take(name, *shape).cpu()
        return self.tensors[name]

    def merge(self, rows_of: Mapping[str, int], *columns: int) -> torch.Tensor:
        return torch.cat([self.take(name, rows, *columns) for name, rows in rows_of.items()])


def reading_rows(place: Place, name: str, config: dict[str, Any]) -> Iterator[Row]:
    """Of a model of this shape, written for the purpose."""
    parsed = parse_config(config)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        size = _write(place, parsed, path)
        rates = [size / _read_s(place, parsed, path) / 1e9 for _ in range(_RUNS)]
    yield row(
        f"{name}, {size / 1e9:.1f} GB of weights", "from page cache to device", "GB/s", rates,
        peer="copy from pinned memory", peer_samples=[_pinned_rate(place) / 1e9],
    )  # fmt: skip


def _write(place: Place, config: ModelConfig, path: Path) -> int:
    kept = _Kept(RandomWeights(place.device, torch.bfloat16))
    rehearse(config, kept)
    save_file(kept.tensors, path)
    return sum(tensor.nbytes for tensor in kept.tensors.values())


def _read_s(place: Place, config: ModelConfig, path: Path) -> float:
    order = partial(rehearse, config)
    began_s = time.perf_counter()
    with open_pinned_weights((path,), order, dtype=torch.bfloat16, device=device_of(place)) as weights:
        rehearse(config, weights)
        place.synchronize()
        return time.perf_counter() - began_s


def _pinned_rate(place: Place) -> float:
    source = torch.ones(place.size(_COPY_BYTES, 1 << 12), dtype=torch.uint8, pin_memory=place.on_card)
    target = torch.empty_like(source, device=place.device)
    seconds = []
    for _ in range(_RUNS):
        place.synchronize()
        began_s = time.perf_counter()
        target.copy_(source, non_blocking=True)
        place.synchronize()
        seconds.append(time.perf_counter() - began_s)
    return source.nbytes / min(seconds)
