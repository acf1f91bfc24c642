"""What is wrong with a model or a setting is one clear line at start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from services.worker.engine.errors import (
    EngineLoadError,
    ModelFormatError,
    NotEnoughMemory,
    UnsupportedModel,
)
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from tests.support.tiny_llama import TinyLlama, write_tiny_llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "model", TinyLlama(layers=1))


def load(model: Path, **settings: Any) -> None:
    load_engine(
        EngineSettings(
            model=model, **{"device": "cpu", "dtype": "float32", "kv_blocks": 64, "threads": 1} | settings
        )
    )


def change_config(model: Path, **values: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def message_of(error: pytest.ExceptionInfo[EngineLoadError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_truncated_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelFormatError) as error:
        load(model)
    assert "model.safetensors" in message_of(error)


def test_weights_that_are_something_else(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"<html>not found</html>" * 10)
    with pytest.raises(ModelFormatError) as error:
        load(model)
    assert "fetch it again" in message_of(error)


def test_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError) as error:
        load(model)
    assert "safetensors" in message_of(error)


def test_a_missing_shard(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path, TinyLlama(layers=1, shards=2))
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFormatError) as error:
        load(model)
    assert "model-00002-of-00002.safetensors" in message_of(error)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hidden_size": 128, "head_dim": 16}, "config.json implies"),
        ({"num_hidden_layers": 2}, "model.layers.1"),
        ({"vocab_size": 500}, "[512, 144]"),
        ({"num_key_value_heads": 4}, "evenly"),
        ({"num_attention_heads": "nine"}, "num_attention_heads"),
        ({"intermediate_size": -1}, "intermediate_size"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "must be below"),
    ],
)
def test_a_config_that_lies(model: Path, change: dict[str, Any], part: str) -> None:
    change_config(model, **change)
    with pytest.raises(ModelFormatError) as error:
        load(model)
    assert part in message_of(error)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "LlamaForCausalLM, MistralForCausalLM"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": "linear"}, "one for all layers"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, "one for all layers"),
        ({"architectures": "LlamaForCausalLM"}, "architecture LlamaForCausalLM is not supported"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
    ],
)
def test_models_that_are_not_supported(model: Path, change: dict[str, Any], part: str) -> None:
    change_config(model, **change)
    with pytest.raises(UnsupportedModel) as error:
        load(model)
    assert part in message_of(error)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError) as error:
        load(tmp_path)
    assert "config.json" in message_of(error)


@pytest.mark.parametrize("ids", ["two", ["<|im_end|>"], [[2]], -1])
def test_end_ids_that_are_none(model: Path, ids: Any) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(ModelFormatError) as error:
        load(model)
    assert "eos_token_id" in message_of(error)


@pytest.mark.parametrize("weight_map", [None, ["model.safetensors"], {"model.norm.weight": 1}])
def test_an_index_without_files(model: Path, weight_map: Any) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError) as error:
        load(model)
    assert "model.safetensors.index.json" in message_of(error)


def test_too_little_memory_for_the_context(model: Path) -> None:
    with pytest.raises(NotEnoughMemory) as error:
        load(model, max_context=2048, kv_blocks=None, kv_memory_bytes=100_000)
    assert "lower max_context or raise kv_memory_bytes" in message_of(error)


def test_a_device_that_is_not_there(model: Path) -> None:
    with pytest.raises(EngineLoadError) as error:
        load(model, device="cuda", device_index=99)
    assert "CUDA" in message_of(error) or "cuda" in message_of(error)


def test_numerics_differ_by_dtype_and_weights(model: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other", TinyLlama(layers=1, seed=1))
    settings = [
        EngineSettings(model=model, device="cpu", dtype="float32", kv_blocks=4, threads=1),
        EngineSettings(model=model, device="cpu", dtype="bfloat16", kv_blocks=4, threads=1),
        EngineSettings(model=other, device="cpu", dtype="float32", kv_blocks=4, threads=1),
    ]
    ids = {load_engine(each).description.numerics_id for each in (*settings, settings[0])}
    assert len(ids) == 3
    assert {len(each) for each in ids} == {32}
