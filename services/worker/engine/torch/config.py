"""What config.json says of a model, checked before any weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from services.worker.engine.errors import ModelFormatError, UnsupportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What an architecture always has, whatever its config says."""

    qkv_bias: bool = False
    qk_norm: bool = False  # RMS norm on each head of q and k


FAMILIES = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qk_norm=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretching of low frequencies, or division of all positions (`linear`)."""

    kind: str  # "llama3" or "linear"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shapes and constants of a Llama-like decoder."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    context: int  # tokens
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool  # the output matrix is the embedding
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @property
    def qkv_rows(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


def matrix_sizes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Outputs and inputs of each kind of product, as the model merges them."""
    return (
        (config.qkv_rows, config.hidden),
        (config.hidden, config.heads * config.head_dim),
        (2 * config.ffn, config.hidden),
        (config.hidden, config.ffn),
        (config.vocab_size, config.hidden),
    )


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """Read the content of config.json.

    Raises UnsupportedModel for what this engine does not run, ModelFormatError for what no engine could.
    """
    family = _family(raw)
    heads = _integer(raw, "num_attention_heads")
    hidden = _integer(raw, "hidden_size")
    theta, scaling = _rope(raw)
    config = ModelConfig(
        architecture=raw["architectures"][0],
        layers=_integer(raw, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_integer(raw, "num_key_value_heads", heads),
        head_dim=_integer(raw, "head_dim", hidden // heads),
        ffn=_integer(raw, "intermediate_size"),
        vocab_size=_integer(raw, "vocab_size"),
        context=_context(raw),
        norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias or bool(raw.get("attention_bias", False)),
        o_bias=not family.qkv_bias and bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
    )
    _check(config, raw)
    return config


def _family(raw: dict[str, Any]) -> Family:
    architectures = raw.get("architectures") or ["none"]
    name = architectures[0] if isinstance(architectures, list) else architectures
    family = FAMILIES.get(name) if isinstance(architectures, list) and isinstance(name, str) else None
    if family is None:
        supported = ", ".join(FAMILIES)
        raise UnsupportedModel(f"architecture {name} is not supported; supported are {supported}")
    if raw.get("quantization_config"):
        raise UnsupportedModel("quantised weights are not supported; use the bf16, fp16 or fp32 model")
    return family


def _integer(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelFormatError(f"config.json: {key} must be a positive integer, not {value!r}")
    return value


def _number(raw: dict[str, Any], key: str, default: float | None = None) -> float:
    value = raw.get(key, default)
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise ModelFormatError(f"config.json: {key} must be a positive number, not {value!r}")
    return number


def _context(raw: dict[str, Any]) -> int:
    """Within a sliding window, attention is the full one: beyond it this engine does not go."""
    context = _integer(raw, "max_position_embeddings")
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    return min(context, window) if isinstance(window, int) and window > 0 else context


def _rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        raise UnsupportedModel(
            f"config.json: RoPE is described as {str(scaling)[:80]}; supported is one for all layers"
        )
    theta = _number(scaling if scaling.get("rope_theta") is not None else raw, "rope_theta", 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind=kind, factor=_number(scaling, "factor"))
    if kind != "llama3":
        raise UnsupportedModel(f"RoPE scaling {kind} is not supported; supported are default, linear, llama3")
    return theta, _llama3(scaling)


def _llama3(scaling: dict[str, Any]) -> RopeScaling:
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    if low >= high:
        raise ModelFormatError(
            f"config.json: low_freq_factor {low:g} must be below high_freq_factor {high:g}"
        )
    return RopeScaling(
        kind="llama3",
        factor=_number(scaling, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=_integer(scaling, "original_max_position_embeddings"),
    )


def _check(config: ModelConfig, raw: dict[str, Any]) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"activation {raw['hidden_act']} is not supported; supported is silu")
    if config.heads % config.kv_heads:
        raise ModelFormatError(
            f"config.json: {config.heads} heads cannot share {config.kv_heads} key-value heads evenly"
        )
    if config.head_dim % 2:
        raise ModelFormatError(f"config.json: head_dim must be even, not {config.head_dim}")
