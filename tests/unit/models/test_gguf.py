"""Conversion of GGUF files, compared with the weights they were made of and with transformers' own loader."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer

from services.common.models import ModelDamaged, ModelUnsupported, SilentProgress
from services.common.models.gguf import convert
from services.common.models.gguf_config import llama3_divisors
from services.common.models.gguf_tensors import hugging_face_name
from services.common.models.safetensors_file import to_bf16
from tests.support.tiny_gguf import HEAD_DIM, Options, Weights, random_weights, write_tiny_gguf
from tests.support.tiny_tokenizer import tiny_tokenizer

QKV = ("attn_q", "attn_k", "attn_v")
Q8 = gguf.GGMLQuantizationType.Q8_0
ARCHITECTURES = [
    Options(),
    Options(tied=False, biased=(*QKV, "attn_output")),
    Options("qwen2", pre="qwen2", biased=QKV),
    Options("qwen3", tied=False, pre="qwen2"),
    Options(quantisation=Q8),
]


class Converted:
    """A tiny GGUF file and the directory it became."""

    def __init__(self, base: Path, options: Options) -> None:
        self.weights: Weights = random_weights(options)
        self.file, self.directory = base / "tiny.gguf", base / "converted"
        write_tiny_gguf(self.file, options, self.weights)
        self.directory.mkdir()
        convert(self.file, self.directory, SilentProgress())

    def config(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.directory / "config.json").read_text())
        return value

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        with safe_open(self.directory / "model.safetensors", "pt") as file:
            return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (to_bf16(values).astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("options", ARCHITECTURES)
def test_the_stored_tensors_are_the_original_ones_rounded_to_bf16(tmp_path: Path, options: Options) -> None:
    converted = Converted(tmp_path, options)
    tensors = converted.tensors()
    assert len(tensors) == len(converted.weights)
    for gguf_name, values in converted.weights.items():
        if options.quantisation == Q8 and values.ndim > 1:
            values = dequantize(quantize(values, Q8), Q8)
        assert np.array_equal(tensors[hugging_face_name(gguf_name) or ""], rounded(values)), gguf_name


# transformers 5.23 takes every Qwen3 file for one with heads of 128, and leaves out a llama's biases.
@pytest.mark.parametrize("options", [Options(), Options("qwen2", biased=QKV), Options(quantisation=Q8)])
def test_transformers_computes_the_same_from_the_directory_as_from_the_file(
    tmp_path: Path, options: Options
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    converted = Converted(tmp_path, options)
    load = AutoModelForCausalLM.from_pretrained
    ours = load(converted.directory, dtype=torch.float32)
    theirs = load(tmp_path, gguf_file=converted.file.name, dtype=torch.float32)
    for parameter in theirs.state_dict().values():
        parameter.copy_(parameter.to(torch.bfloat16))
    ids = torch.arange(40).reshape(2, 20) * 7 % 512
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_bf16_rounds_as_torch_does() -> None:
    import torch

    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    edges = np.array([0, 0x7F7FFFFF, 0x7F800000, 0x7F808000, 0x3F808000, 0x3F818000, 0xFFFFFFFF], np.uint32)
    values = np.concatenate([bits, edges, edges ^ 0x80000000]).view(np.float32)
    ours = (to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    torchs = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(ours, torchs, equal_nan=True)


def test_the_tokenizer_gives_the_ids_it_was_made_of(tmp_path: Path) -> None:
    converted = Converted(tmp_path, Options())
    tokenizer = Tokenizer.from_file(str(converted.directory / "tokenizer.json"))
    for text in (
        "",
        "the mill wheel",
        "<|im_start|>user\nWhy 12?<|im_end|>",
        "déjà vu 日本語 🙂",
        "\x00 \t\n",
    ):
        assert tokenizer.encode(text).ids == tiny_tokenizer().encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_digit_splitting_vocabulary_splits_digits(tmp_path: Path) -> None:
    converted = Converted(tmp_path, Options(pre="smollm"))
    tokenizer = Tokenizer.from_file(str(converted.directory / "tokenizer.json"))
    cut = tokenizer.pre_tokenizer.pre_tokenize_str("at 120 mills")
    assert [piece for piece, _ in cut] == ["at", "Ġ", "1", "2", "0", "Ġmills"]


def test_the_configuration_says_what_the_metadata_say(tmp_path: Path) -> None:
    config = Converted(tmp_path, Options(tied=False)).config()
    assert config["rope_theta"] == 100000.0
    assert config["rms_norm_eps"] == 1e-5
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 16)
    assert config["tie_word_embeddings"] is False
    assert config["eos_token_id"] == 2


def test_llama_3_frequencies_come_back_as_their_scaling(tmp_path: Path) -> None:
    divisors = llama3_divisors(100000.0, 8.0, HEAD_DIM // 2).astype(np.float32)
    scaling = Converted(tmp_path, Options(rope_freqs=divisors)).config()["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", 8.0)


def test_llama_3_divisors_are_those_of_transformers() -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=scaling)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(np.arange(64) / 64)
    assert np.allclose(plain / llama3_divisors(500000.0, 8.0, 64), theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options("gpt2"), "architecture 'gpt2'; supported: llama, qwen2, qwen3"),
        (Options(tokenizer_model="bert"), "tokenizer model 'bert'; supported: gpt2, llama"),
        (Options(pre="mystery"), "pre-tokenizer 'mystery'; supported:"),
        (Options(extra_tensor="blk.0.ssm_in.weight"), "unknown tensor blk.0.ssm_in.weight"),
        (Options(biased=("attn_q", "attn_k")), "biases on some of its attention"),
        (Options(rope_freqs=np.full(8, 3.0, np.float32)), "follow no known scaling"),
    ],
)
def test_what_is_unsupported_is_named(tmp_path: Path, options: Options, says: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        Converted(tmp_path, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "converted" / "model.safetensors").exists()


@pytest.mark.parametrize("keep_bytes", [0, 3, 24, 5_000, 60_000])
def test_a_file_that_is_cut_short_is_damaged(tmp_path: Path, keep_bytes: int) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file, Options(), random_weights(Options()))
    file.write_bytes(file.read_bytes()[:keep_bytes])
    with pytest.raises(ModelDamaged) as caught:
        convert(file, tmp_path, SilentProgress())
    assert "\n" not in str(caught.value)
