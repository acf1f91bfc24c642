"""Models of known shapes with random weights, made on the device: times depend on shapes alone."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch

_SPREAD = 1.5  # of weights, times 1 / sqrt(columns): greedy output is not one repeated token
_LLAMA_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _config(architecture: str, **shape: Any) -> dict[str, Any]:
    kind = "llama" if architecture.startswith("Llama") else "qwen3"
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        **shape,
    }


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return _decoder("LlamaForCausalLM", hidden, layers, heads, kv_heads, ffn, vocab, **more)


def _qwen3(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return _decoder("Qwen3ForCausalLM", hidden, layers, heads, kv_heads, ffn, vocab, rope_theta=1e6, **more)


def _decoder(
    architecture: str, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return _config(
        architecture,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=ffn,
        vocab_size=vocab,
        **{"head_dim": 128, "max_position_embeddings": 40_960, **more},
    )


CONFIGS = {
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 8, 3072, 151_936, tie_word_embeddings=True),
    "Llama-3.1-8B": _llama(
        4096, 32, 32, 8, 14_336, 128_256,
        max_position_embeddings=131_072, rope_theta=500_000.0, rope_scaling=_LLAMA_ROPE,
    ),
    "Qwen3-32B": _qwen3(5120, 64, 64, 8, 25_600, 151_936),
    "tiny Llama": _llama(192, 2, 6, 2, 256, 2048, head_dim=64, max_position_embeddings=2048, rope_theta=1e4),
    "tiny Qwen3": _qwen3(128, 2, 4, 4, 256, 2048, head_dim=64, max_position_embeddings=2048),
}  # fmt: skip


class RandomWeights:
    """A `WeightSource`: what a tensor holds depends on its name, its shape and the seed.

    Args:
        dtype: of the tensors; they are drawn in `drawn_as`: those of two types then differ by rounding only.
        made_on: where they are drawn: each kind of device has random numbers of its own. Unset: `device`.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        drawn_as: torch.dtype | None = None,
        made_on: str | None = None,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._drawn_as = drawn_as or dtype
        self._made_on = torch.device(made_on) if made_on else device

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """One tensor: norms around one, matrices by their width."""
        generator = torch.Generator(self._made_on).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.empty(shape, dtype=self._drawn_as, device=self._made_on)
        if len(shape) == 1:
            drawn.normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator)
        else:
            drawn.normal_(0.0, _SPREAD / math.sqrt(shape[-1]), generator=generator)
        return drawn.to(self._device, self._dtype)

    def merge(self, rows_of: Mapping[str, int], *columns: int) -> torch.Tensor:
        """Tensors of so many rows each, one below the other in one."""
        return torch.cat([self.take(name, rows, *columns) for name, rows in rows_of.items()])
