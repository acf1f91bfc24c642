"""What a model's shape makes its steps cost."""

from __future__ import annotations

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
