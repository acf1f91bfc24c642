"""A seeded random Llama of about a million parameters, written in Hugging Face's layout at test time.

Nine query heads share three key-value heads, as in SmolLM2; weights are large enough that greedy output is
not one repeated token. `write_tiny_llama` needs numpy and safetensors only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

EOS_ID = 2  # <|im_end|> of tests.support.tiny_tokenizer


@dataclass(frozen=True, kw_only=True)
class TinyLlama:
    """Shapes; the defaults match `tests.support.tiny_tokenizer`."""

    architecture: str = "LlamaForCausalLM"
    vocab: int = 512
    hidden: int = 144
    layers: int = 4
    heads: int = 9
    kv_heads: int = 3
    ffn: int = 384
    context: int = 2048
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: dict[str, Any] | None = None
    shards: int = 1
    seed: int = 20261121

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def write_tiny_llama(directory: Path, model: TinyLlama | None = None) -> Path:
    """Write config.json, generation_config.json and the weights into `directory`; returns it."""
    model = model or TinyLlama()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_of(model), indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS_ID}))
    tensors = tensors_of(model)
    names = sorted(tensors)
    if model.shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return directory
    weight_map = {name: _shard_name(index % model.shards, model.shards) for index, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, directory / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def config_of(model: TinyLlama) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [model.architecture],
        "model_type": model.architecture.removesuffix("ForCausalLM").lower(),
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": model.rope_scaling,
        "hidden_act": "silu",
        "tie_word_embeddings": model.tied,
        "use_sliding_window": False,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": EOS_ID,
        "torch_dtype": "float32",
    }


def tensors_of(model: TinyLlama) -> dict[str, np.ndarray]:
    """All weights, fp32, the same for the same seed."""
    random = np.random.default_rng(model.seed)
    tensors = {}
    for name, shape in _shapes(model).items():
        if name.endswith("norm.weight"):
            values = 1.0 + 0.1 * random.standard_normal(shape)
        else:
            values = random.standard_normal(shape) * (1.5 / np.sqrt(shape[-1]))
        tensors[name] = values.astype(np.float32)
    return tensors


def _shapes(model: TinyLlama) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (model.vocab, model.hidden),
        "model.norm.weight": (model.hidden,),
    }
    if not model.tied:
        shapes["lm_head.weight"] = (model.vocab, model.hidden)
    for index in range(model.layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in _layer_shapes(model).items()}
    return shapes


def _layer_shapes(model: TinyLlama) -> dict[str, tuple[int, ...]]:
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (model.hidden,),
        "self_attn.q_proj.weight": (query, model.hidden),
        "self_attn.k_proj.weight": (key, model.hidden),
        "self_attn.v_proj.weight": (key, model.hidden),
        "self_attn.o_proj.weight": (model.hidden, query),
        "post_attention_layernorm.weight": (model.hidden,),
        "mlp.gate_proj.weight": (model.ffn, model.hidden),
        "mlp.up_proj.weight": (model.ffn, model.hidden),
        "mlp.down_proj.weight": (model.hidden, model.ffn),
    }
    if model.qkv_bias:
        biases = {"q": query, "k": key, "v": key}
        shapes |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in biases.items()}
    if model.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (model.head_dim,), "self_attn.k_norm.weight": (model.head_dim,)}
    return shapes


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
