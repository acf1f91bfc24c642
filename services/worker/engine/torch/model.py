"""The Llama family as a function of tokens: one flat batch, no notion of sequences outside attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from services.worker.engine.torch.attention import Reader, attend
from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.kv import PagedKV
from services.worker.engine.torch.linear import Linear, make_linear
from services.worker.engine.torch.rope import Rope, rotate
from services.worker.engine.torch.weights import Weights


class Batch(NamedTuple):
    """The tokens of one step."""

    tokens: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    places: torch.Tensor  # [tokens] rows of the pool where their keys and values go
    readers: list[Reader]
    last: torch.Tensor  # [sampled rows] which tokens' logits are wanted


class Layer(NamedTuple):
    """One decoder layer; q, k, v and gate, up are merged into one product each."""

    input_norm: torch.Tensor  # [hidden]
    qkv: Linear
    query_norm: torch.Tensor | None  # [head_dim]
    key_norm: torch.Tensor | None
    output: Linear
    ffn_norm: torch.Tensor  # [hidden]
    gate_up: Linear
    down: Linear


class Llama:
    """Weights and forward pass. Keys and values of the batch are written before anything reads them."""

    def __init__(self, config: ModelConfig, weights: Weights, rope: Rope) -> None:
        self._config = config
        self._rope = rope
        self._embedding = weights.take("model.embed_tokens.weight", config.vocab_size, config.hidden)
        self._layers = [_layer(config, weights, index) for index in range(config.layers)]
        self._norm = weights.take("model.norm.weight", config.hidden)
        self._head = _head(config, weights, self._embedding)

    def forward(self, batch: Batch, kv: PagedKV, block_size: int) -> torch.Tensor:
        """Logits of the wanted tokens, [sampled rows, vocab] in fp32."""
        hidden = self._embedding[batch.tokens]  # [tokens, hidden]
        cos, sin = self._rope.at(batch.positions)
        for layer, pool in zip(self._layers, kv.layers, strict=True):
            hidden = hidden + self._attention(layer, hidden, cos, sin, batch, pool, block_size)
            hidden = hidden + self._ffn(layer, hidden)
        return self._head(self._rms(hidden[batch.last], self._norm)).float()

    def _attention(
        self,
        layer: Layer,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        batch: Batch,
        pool: torch.Tensor,
        block_size: int,
    ) -> torch.Tensor:
        config = self._config
        merged = layer.qkv(self._rms(hidden, layer.input_norm)).view(len(hidden), -1, config.head_dim)
        query, key, value = merged.tensor_split((config.heads, config.heads + config.kv_heads), dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._rms(query, layer.query_norm), self._rms(key, layer.key_norm)
        pool[0].index_copy_(0, batch.places, rotate(key, cos, sin))
        pool[1].index_copy_(0, batch.places, value)
        attended = attend(rotate(query, cos, sin), pool, batch.readers, block_size)
        return layer.output(attended.view(len(hidden), -1))

    def _ffn(self, layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_up(self._rms(hidden, layer.ffn_norm)).chunk(2, dim=-1)
        return layer.down(functional.silu(gate) * up)

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._config.norm_eps)


def _layer(config: ModelConfig, weights: Weights, index: int) -> Layer:
    prefix = f"model.layers.{index}"
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, mlp, hidden, ffn = f"{prefix}.self_attn", f"{prefix}.mlp", config.hidden, config.ffn
    qkv = {f"{attention}.q_proj": q_rows, f"{attention}.k_proj": kv_rows, f"{attention}.v_proj": kv_rows}
    gate_up = {f"{mlp}.gate_proj": ffn, f"{mlp}.up_proj": ffn}
    norm_of = (lambda name: weights.take(name, config.head_dim)) if config.qk_norm else (lambda name: None)
    return Layer(
        input_norm=weights.take(f"{prefix}.input_layernorm.weight", hidden),
        qkv=_merged(weights, qkv, hidden, biased=config.qkv_bias),
        query_norm=norm_of(f"{attention}.q_norm.weight"),
        key_norm=norm_of(f"{attention}.k_norm.weight"),
        output=_merged(weights, {f"{attention}.o_proj": hidden}, q_rows, biased=config.o_bias),
        ffn_norm=weights.take(f"{prefix}.post_attention_layernorm.weight", hidden),
        gate_up=_merged(weights, gate_up, hidden, biased=config.mlp_bias),
        down=_merged(weights, {f"{mlp}.down_proj": hidden}, ffn, biased=config.mlp_bias),
    )


def _merged(weights: Weights, rows_of: dict[str, int], columns: int, *, biased: bool) -> Linear:
    """One product for matrices that read the same input."""
    matrices = [weights.take(f"{name}.weight", rows, columns) for name, rows in rows_of.items()]
    biases = [weights.take(f"{name}.bias", rows) for name, rows in rows_of.items()] if biased else []
    return make_linear(torch.cat(matrices), torch.cat(biases) if biases else None)


def _head(config: ModelConfig, weights: Weights, embedding: torch.Tensor) -> Linear:
    if config.tied:
        return make_linear(embedding)
    return make_linear(weights.take("lm_head.weight", config.vocab_size, config.hidden))
