"""The Llama family as a function of tokens: one flat batch, no notion of sequences outside attention."""

from __future__ import annotations

from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.linear import Linear, MakeLinear
from services.worker.engine.torch.operators import HeadNorms, Inputs, Operators
from services.worker.engine.torch.weights import WeightSource

BatchT = TypeVar("BatchT", bound=Inputs)


class Pools(Protocol):
    """KV memory, one pool a layer, laid out as the operators have it."""

    @property
    def layers(self) -> list[torch.Tensor]: ...


class Layer(NamedTuple):
    """One decoder layer; q, k, v and gate, up are merged into one product each."""

    input_norm: torch.Tensor  # [hidden]
    qkv: Linear
    head_norms: HeadNorms | None
    output: Linear
    ffn_norm: torch.Tensor  # [hidden]
    gate_up: Linear
    down: Linear


class Llama(Generic[BatchT]):
    """Weights and forward pass. Keys and values of the batch are written before anything reads them."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        operators: Operators[BatchT],
        make_linear: MakeLinear,
    ) -> None:
        self._operators = operators
        self._embedding = weights.take("model.embed_tokens.weight", config.vocab_size, config.hidden)
        self._layers = [_layer(config, weights, make_linear, index) for index in range(config.layers)]
        self._norm = weights.take("model.norm.weight", config.hidden)
        self._head = make_linear(_head(config, weights, self._embedding), wide=True)

    def forward(self, batch: BatchT, kv: Pools) -> torch.Tensor:
        """Logits of the wanted tokens, [sampled rows, vocab] in fp32."""
        return self.scores(batch, kv).float()

    def scores(self, batch: BatchT, kv: Pools) -> torch.Tensor:
        """The same as the last product gives them."""
        operators = self._operators.on(batch)
        hidden, delta = self._embedding[batch.tokens], None  # [tokens, hidden]; what it still lacks
        for layer, pool in zip(self._layers, kv.layers, strict=True):
            normed = operators.add_norm(hidden, delta, layer.input_norm)
            query = operators.place(layer.qkv(normed), layer.head_norms, pool)
            delta = layer.output(operators.attend(query, pool).view(len(hidden), -1))
            normed = operators.add_norm(hidden, delta, layer.ffn_norm)
            delta = layer.down(operators.gate(layer.gate_up(normed)))
        assert delta is not None, "a model has layers"
        normed = operators.add_norm(hidden[batch.last], delta[batch.last], self._norm)
        return self._head(normed)


def _layer(config: ModelConfig, weights: WeightSource, make_linear: MakeLinear, index: int) -> Layer:
    prefix = f"model.layers.{index}"
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, mlp, hidden, ffn = f"{prefix}.self_attn", f"{prefix}.mlp", config.hidden, config.ffn
    qkv = {f"{attention}.q_proj": q_rows, f"{attention}.k_proj": kv_rows, f"{attention}.v_proj": kv_rows}
    gate_up = {f"{mlp}.gate_proj": ffn, f"{mlp}.up_proj": ffn}
    merged = partial(_merged, weights, make_linear)
    return Layer(
        input_norm=weights.take(f"{prefix}.input_layernorm.weight", hidden),
        qkv=merged(qkv, hidden, biased=config.qkv_bias),
        head_norms=_head_norms(config, weights, attention) if config.qk_norm else None,
        output=merged({f"{attention}.o_proj": hidden}, q_rows, biased=config.o_bias),
        ffn_norm=weights.take(f"{prefix}.post_attention_layernorm.weight", hidden),
        gate_up=merged(gate_up, hidden, biased=config.mlp_bias),
        down=merged({f"{mlp}.down_proj": hidden}, ffn, biased=config.mlp_bias),
    )


def _head_norms(config: ModelConfig, weights: WeightSource, attention: str) -> HeadNorms:
    return HeadNorms(
        query=weights.take(f"{attention}.q_norm.weight", config.head_dim),
        key=weights.take(f"{attention}.k_norm.weight", config.head_dim),
    )


def _merged(
    weights: WeightSource, make_linear: MakeLinear, rows_of: dict[str, int], columns: int, *, biased: bool
) -> Linear:
    """One product for matrices that read the same input."""
    matrix = weights.merge({f"{name}.weight": rows for name, rows in rows_of.items()}, columns)
    bias = weights.merge({f"{name}.bias": rows for name, rows in rows_of.items()}) if biased else None
    return make_linear(matrix, bias)


def _head(config: ModelConfig, weights: WeightSource, embedding: torch.Tensor) -> torch.Tensor:
    """[vocab, hidden]"""
    return embedding if config.tied else weights.take("lm_head.weight", config.vocab_size, config.hidden)
