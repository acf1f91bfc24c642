"""config.json and generation_config.json out of a GGUF file's metadata, per architecture."""

import math
from typing import Any, NamedTuple

import gguf.quants
import numpy as np
from numpy.typing import NDArray

from services.common.models.errors import ModelUnsupported
from services.common.models.gguf_metadata import GgufFile

# The only constants of this scaling that any published model uses (Llama 3.1 to 3.3); a GGUF file keeps
# the frequencies that come of them, so a file made with others is told apart and refused.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


class Architecture(NamedTuple):
    """What Hugging Face calls a GGUF architecture."""

    model_type: str
    model_class: str
    interleaved_rope: bool  # query and key rows were permuted for ggml's rope and go back


# Mistral's dense models call themselves llama in GGUF and are Llamas in all that is computed.
ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", interleaved_rope=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", interleaved_rope=False),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", interleaved_rope=False),
}


def architecture_of(file: GgufFile) -> Architecture:
    """The file's architecture.

    Raises:
        ModelUnsupported: none of those that Headrace converts.
    """
    known = ARCHITECTURES.get(file.architecture)
    if known is None:
        names = ", ".join(sorted(ARCHITECTURES))
        raise ModelUnsupported(f"{file.path.name}: architecture {file.architecture!r}; supported: {names}")
    if file.optional_integer(f"{file.architecture}.expert_count"):
        raise ModelUnsupported(f"{file.path.name}: mixture of experts is not supported; take a dense model")
    return known


def model_config(file: GgufFile) -> dict[str, Any]:
    """What config.json holds: the keys that transformers writes for this model type."""
    architecture = architecture_of(file)
    config = _shape(file) | _rope(file)
    config["architectures"] = [architecture.model_class]
    config["model_type"] = architecture.model_type
    config["hidden_act"] = "silu"
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["torch_dtype"] = "bfloat16"
    if architecture.model_type == "llama":
        config["attention_bias"] = _attention_bias(file)
    return config | special_ids(file)


def generation_config(file: GgufFile) -> dict[str, Any]:
    """What generation_config.json holds."""
    return special_ids(file)


def special_ids(file: GgufFile) -> dict[str, Any]:
    """The ids of the beginning, the end and padding, those that the file names."""
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {name: file.optional_integer(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: value for name, value in ids.items() if value is not None}


def attention_heads(file: GgufFile) -> tuple[int, int]:
    """Query heads, key-value heads."""
    heads = file.integer(f"{file.architecture}.attention.head_count")
    return heads, file.integer(f"{file.architecture}.attention.head_count_kv", heads)


def _shape(file: GgufFile) -> dict[str, Any]:
    prefix = file.architecture
    heads, kv_heads = attention_heads(file)
    hidden = file.integer(f"{prefix}.embedding_length")
    return {
        "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": file.integer(f"{prefix}.feed_forward_length"),
        "num_hidden_layers": file.integer(f"{prefix}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": file.integer(f"{prefix}.attention.key_length", hidden // heads),
        "max_position_embeddings": file.integer(f"{prefix}.context_length"),
        "rms_norm_eps": file.real(f"{prefix}.attention.layer_norm_rms_epsilon"),
    }


def _attention_bias(file: GgufFile) -> bool:
    """Hugging Face's Llama has a bias on all four attention matrices or on none."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_output")
    biased = {f"blk.0.{part}.bias" in file.tensors for part in parts}
    if len(biased) > 1:
        raise ModelUnsupported(f"{file.path.name}: biases on some of its attention matrices, not on all")
    return biased == {True}


def _rope(file: GgufFile) -> dict[str, Any]:
    theta = file.real(f"{file.architecture}.rope.freq_base", 10000.0)
    scaling = _scaling(file, theta)
    return {"rope_theta": theta} if scaling is None else {"rope_theta": theta, "rope_scaling": scaling}


def _scaling(file: GgufFile, theta: float) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file, theta)
    prefix = f"{file.architecture}.rope.scaling"
    kind = file.text(f"{prefix}.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelUnsupported(f"{file.path.name}: rope scaling {kind!r}; supported: linear, yarn, llama3")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": file.real(f"{prefix}.factor")}
    if kind == "yarn":
        original = file.integer(f"{prefix}.original_context_length")
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3_scaling(file: GgufFile, theta: float) -> dict[str, Any]:
    tensor = file.tensors["rope_freqs.weight"]
    divisors = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)  # [head_dim / 2]
    factor = round(float(divisors.max()), 3)
    if not np.allclose(divisors, llama3_divisors(theta, factor, len(divisors)), rtol=1e-3):
        raise ModelUnsupported(f"{file.path.name}: its rope frequencies follow no known scaling")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def llama3_divisors(theta: float, factor: float, pairs: int) -> NDArray[np.float64]:
    """What each rotary frequency is divided by, as Llama 3.1 defines it (its `apply_scaling`). [pairs]"""
    wavelengths = 2 * math.pi * theta ** (np.arange(pairs) / pairs)
    smooth = (_LLAMA3_CONTEXT / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    share = np.clip(smooth, 0.0, 1.0)
    result: NDArray[np.float64] = 1.0 / ((1 - share) / factor + share)
    return result
