"""Models of a known shape with random weights, in Hugging Face's layout: what engines are timed with.

    python -m bench.shapes DIRECTORY [--shape 60m] [--seed 0]

Times of an engine depend on shapes, not on what weights say. The tokenizer is a byte-level BPE that has a
text for each id and needs no training: letters, pairs and triples of them, with and without a space before.
Every engine that reads such a directory runs the same work: ours, transformers, vLLM, OpenVINO, CTranslate2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from services.common.models.safetensors_file import TensorPlan, write_bf16_file

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPACE = "Ġ"  # as byte-level BPE writes it
_SPREAD = 1.5  # of weights, times 1 / sqrt(columns): greedy output is not one repeated token


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama's shape."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int = 8192
    tied: bool = False

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in tensor_shapes(self).values())


SHAPES = {
    "60m": Shape(hidden=512, layers=8, heads=8, kv_heads=4, head_dim=64, ffn=1536, vocab=32_000),
    "1m": Shape(hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab=2048, context=2048),
}


def write_model(directory: Path, shape: Shape = SHAPES["60m"], seed: int = 0) -> Path:
    """Write weights in bf16, configuration and tokenizer; returns the directory. The same seed, the same."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config_of(shape))
    _write_json(directory / "generation_config.json", {"eos_token_id": EOS_ID, "pad_token_id": PAD_ID})
    _write_json(directory / "tokenizer_config.json", tokenizer_config(shape))
    tokenizer_of(shape.vocab).save(str(directory / "tokenizer.json"))
    _write_weights(directory / "model.safetensors", shape, seed)
    return directory


def config_of(shape: Shape) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "torch_dtype": "bfloat16",
    }


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context,
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "pad_token": SPECIAL_TOKENS[PAD_ID],
        "chat_template": CHAT_TEMPLATE,
    }


def tokenizer_of(vocab: int) -> Tokenizer:
    """Special tokens, the 256 bytes, then merges; exactly `vocab` ids, at most about 36,000."""
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = list(islice(_merges(), vocab - len(symbols)))
    symbols += [left + right for left, right in merges]
    if len(symbols) != vocab:
        raise ValueError(f"a vocabulary of {vocab} is out of range: {len(symbols)} can be made")
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """All weights by name, [out, in] or [hidden]."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    if not shape.tied:
        shapes["lm_head.weight"] = (shape.vocab, shape.hidden)
    for index in range(shape.layers):
        shapes |= {f"model.layers.{index}.{name}": size for name, size in _layer(shape).items()}
    return shapes


def _merges() -> Iterator[tuple[str, str]]:
    yield from ((_SPACE, letter) for letter in ascii_lowercase)
    yield from product(ascii_lowercase, repeat=2)
    yield from ((_SPACE, first + second) for first, second in product(ascii_lowercase, repeat=2))
    triples = [(first + second, third) for first, second, third in product(ascii_lowercase, repeat=3)]
    yield from triples
    yield from ((_SPACE + pair, third) for pair, third in triples)


def _layer(shape: Shape) -> dict[str, tuple[int, ...]]:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "input_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (query, shape.hidden),
        "self_attn.k_proj.weight": (key, shape.hidden),
        "self_attn.v_proj.weight": (key, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, query),
        "post_attention_layernorm.weight": (shape.hidden,),
        "mlp.gate_proj.weight": (shape.ffn, shape.hidden),
        "mlp.up_proj.weight": (shape.ffn, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.ffn),
    }


def _write_weights(path: Path, shape: Shape, seed: int) -> None:
    random = np.random.default_rng(seed)
    plans = [TensorPlan(name, size) for name, size in tensor_shapes(shape).items()]
    values = (_values(random, plan.shape) for plan in plans)
    for _ in write_bf16_file(path, plans, values, {"format": "pt"}):
        pass


def _values(random: np.random.Generator, size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    drawn = random.standard_normal(size, np.float32)
    return 1.0 + 0.1 * drawn if len(size) == 1 else drawn * np.float32(_SPREAD / np.sqrt(size[-1]))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write one model."""
    options = argparse.ArgumentParser(description="Write a model with random weights.")
    options.add_argument("directory", type=Path)
    options.add_argument("--shape", choices=sorted(SHAPES), default="60m")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    shape = SHAPES[given.shape]
    write_model(given.directory, shape, given.seed)
    print(f"{given.directory}: {shape.parameters / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
