"""What work costs at least: FLOPs and bytes of a model's steps, and which part of a ceiling was reached.

    FLOPs = 2 * layer weights * tokens + 2 * head weights * outputs + 4 * layers * heads * head_dim * pairs
    bytes = layer and head weights * steps + KV bytes a token * tokens that decodes read

A pair is a query and a token that it reads. Embeddings are looked up, not multiplied; reading KV in prompts
and writing it is left out of the bytes, recomputed tokens out of both: what was useful counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Self


class ModelSize(NamedTuple):
    """Of config.json."""

    layer_weights: int  # of all layers
    head_weights: int
    pair_flops: int  # 4 * layers * heads * head_dim
    kv_values: int  # of one token in all layers

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Of a Llama-like model's config.json. Raises KeyError where it says too little."""
        layers, hidden, heads = (
            config[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
        kv_heads = config.get("num_key_value_heads", heads)
        head_dim = config.get("head_dim") or hidden // heads
        layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * config["intermediate_size"]
        return cls(
            layer_weights=layers * layer,
            head_weights=hidden * config["vocab_size"],
            pair_flops=4 * layers * heads * head_dim,
            kv_values=2 * layers * kv_heads * head_dim,
        )


class Useful(NamedTuple):
    """Work that had to be done, whatever the order it was done in."""

    tokens: int  # that went through the layers
    outputs: int
    pairs: int
    decode_reads: int  # tokens of KV that decodes read

    @classmethod
    def of(cls, lengths: Iterable[tuple[int, int, int]]) -> Self:
        """Of requests as (prompt tokens, of them found in KV, outputs); the last output is not fed in."""
        total = cls(0, 0, 0, 0)
        for prompt, cached, outputs in lengths:
            end = prompt + outputs - 1
            own = cls(
                tokens=end - cached,
                outputs=outputs,
                pairs=_triangle(end) - _triangle(cached),
                decode_reads=_triangle(end) - _triangle(prompt),
            )
            total = cls(*(mine + more for mine, more in zip(total, own, strict=True)))
        return total


def flops(size: ModelSize, useful: Useful) -> float:
    """Of the work."""
    products = 2.0 * size.layer_weights * useful.tokens + 2.0 * size.head_weights * useful.outputs
    return products + float(size.pair_flops) * useful.pairs


def bytes_read(size: ModelSize, useful: Useful, steps: int, weight_bytes: float, kv_bytes: float) -> float:
    """Of the work in so many steps; `weight_bytes` and `kv_bytes` are those of one value."""
    weights = (size.layer_weights + size.head_weights) * weight_bytes * steps
    return weights + size.kv_values * kv_bytes * useful.decode_reads


def _triangle(count: int) -> int:
    return count * (count + 1) // 2
