"""Weights read ahead by threads arrive whole, in their places, and what is wrong with them is one line."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker.engine.errors import ModelFormatError
from services.worker.engine.torch.config import ModelConfig, parse_config
from services.worker.engine.torch.cuda.build import rehearse
from services.worker.engine.torch.cuda.weights import open_pinned_weights
from services.worker.engine.torch.weights import WeightSource, open_weights
from tests.support.fake_device import FakeDevice
from tests.support.tiny_llama import TinyLlama, write_tiny_llama

SHAPES = TinyLlama(layers=2, tied=False, shards=2, qkv_bias=True, architecture="Qwen2ForCausalLM")


class Noted:
    """A `WeightSource` that keeps copies of what it hands out."""

    def __init__(self, source: WeightSource) -> None:
        self.tensors: list[torch.Tensor] = []
        self._source = source

    def take(self, name: str, *shape: int) -> torch.Tensor:
        self.tensors.append(self._source.take(name, *shape))
        return self.tensors[-1]

    def merge(self, rows_of: Any, *columns: int) -> torch.Tensor:
        self.tensors.append(self._source.merge(rows_of, *columns))
        return self.tensors[-1]


def config_of(model: Path) -> ModelConfig:
    return parse_config(json.loads((model / "config.json").read_text()))


def paths_of(model: Path) -> tuple[Path, ...]:
    return tuple(sorted(model.glob("*.safetensors")))


def read(model: Path, device: FakeDevice, dtype: torch.dtype, piece_bytes: int) -> list[torch.Tensor]:
    order = partial(rehearse, config_of(model))
    with open_pinned_weights(
        paths_of(model), order, dtype=dtype, device=device, piece_bytes=piece_bytes
    ) as weights:
        noted = Noted(weights)
        rehearse(config_of(model), noted)
    return noted.tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece_bytes", [4096, 100_000, 1 << 22])
@pytest.mark.parametrize("eager", [0.0, 0.5])
def test_tensors_are_those_of_the_files(
    tmp_path: Path, dtype: torch.dtype, piece_bytes: int, eager: float
) -> None:
    model = write_tiny_llama(tmp_path, SHAPES)
    tensors = read(model, FakeDevice(1, eager), dtype, piece_bytes)
    with open_weights(paths_of(model), dtype=dtype, device=torch.device("cpu")) as weights:
        expected = Noted(weights)
        rehearse(config_of(model), expected)
    assert len(tensors) == len(expected.tensors) > 10
    for mine, other in zip(tensors, expected.tensors, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_pinned_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    model, device = write_tiny_llama(tmp_path, TinyLlama(layers=1)), FakeDevice()
    read(model, device, torch.float32, 4096)
    assert device.pinned_bytes < (model / "model.safetensors").stat().st_size / 4


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_size": 128, "head_dim": 16}, "config.json implies"),
        ({"num_hidden_layers": 3}, "the weights lack model.layers.2"),
        ({"vocab_size": 500}, "has shape [512, 144], config.json implies [500, 144]"),
    ],
)
def test_a_config_that_lies_is_found_before_anything_is_read(
    tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    model, device = write_tiny_llama(tmp_path, SHAPES), FakeDevice()
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFormatError) as error:
        read(model, device, torch.float32, 4096)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not device.allocations


def test_a_truncated_file(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path, TinyLlama(layers=1))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelFormatError, match=r"model\.safetensors is no readable safetensors file"):
        read(model, FakeDevice(), torch.float32, 4096)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path, TinyLlama(layers=2))
    weights = model / "model.safetensors"

    def shrinking(source: WeightSource) -> None:
        rehearse(config_of(model), source)
        weights.write_bytes(weights.read_bytes()[:200_000])

    with (
        pytest.raises(ModelFormatError, match="cannot be read"),
        open_pinned_weights(
            (weights,), shrinking, dtype=torch.float32, device=FakeDevice(), piece_bytes=4096
        ) as source,
    ):
        rehearse(config_of(model), source)


def test_threads_end_with_the_weights(tmp_path: Path) -> None:
    model, device = write_tiny_llama(tmp_path, TinyLlama(layers=1)), FakeDevice()
    before = set(threading.enumerate())
    order = partial(rehearse, config_of(model))
    with open_pinned_weights(
        paths_of(model), order, dtype=torch.float32, device=device, piece_bytes=4096
    ):  # most of it is not taken
        assert set(threading.enumerate()) > before
    assert not set(threading.enumerate()) - before
