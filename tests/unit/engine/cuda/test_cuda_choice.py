"""What a model is built with on a card: a name for all that changes last bits, a line for what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.config import ModelConfig, parse_config
from services.worker.engine.torch.cuda import choice, products
from services.worker.engine.torch.cuda.attention import choice as attention_choice
from services.worker.engine.torch.cuda.build import CudaParts
from services.worker.engine.torch.cuda.choice import Wanted, choose_cuda_parts
from services.worker.engine.torch.cuda.products import FixedLinear
from services.worker.engine.torch.linear import PlainLinear


@pytest.fixture(scope="module")
def config(tiny_llama: Path) -> ModelConfig:
    return parse_config(json.loads((tiny_llama / "config.json").read_text()))


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU under the name of a card that has products in 8 bits; the interpreter takes its time."""
    monkeypatch.setattr(attention_choice, "_RIGHT", ((1, 70), (5, 130), (1, 64)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA Test")
    monkeypatch.setattr(products, "fault_of", lambda *_: None)


def chosen(config: ModelConfig, **wanted: Any) -> CudaParts:
    return choose_cuda_parts(config, 256, torch.float32, torch.device("cpu"), Wanted(**wanted))


def test_our_kernels_pass_their_trial_and_the_choice_is_said(
    config: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = chosen(config)
    assert parts.name == "NVIDIA Test, attention triton"
    assert not parts.deterministic
    assert isinstance(parts.make_linear(torch.ones(8, 8)), PlainLinear)
    said = capsys.readouterr().err
    assert said.startswith("attention: decode triton; mixed triton; eager triton; without flashinfer: ")
    assert "without varlen: " in said
    assert said.count("\n") == 1


def test_deterministic_parts_have_fixed_tiles_and_say_so(config: ModelConfig) -> None:
    parts = chosen(config, deterministic=True)
    assert parts.name == "NVIDIA Test, attention triton, fixed tiles, deterministic"
    assert parts.deterministic
    assert isinstance(parts.make_linear(torch.ones(8, 8)), FixedLinear)


def test_every_wish_has_a_name_of_its_own(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "_RIGHT", ((1, 70),))
    wishes: list[dict[str, Any]] = [
        {"quantization": quantization, "deterministic": deterministic}
        for quantization in ("none", "fp8", "int8")
        for deterministic in (False, True)
    ]
    assert len({chosen(config, **wish).name for wish in wishes}) == len(wishes)


def test_a_torch_without_triton_is_refused_in_one_line(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{choice._PACKAGE}.kernels", None)
    with pytest.raises(EngineLoadError, match=r"^CUDA needs triton.*or use device cpu$"):
        chosen(config)
