"""The operators in plain torch: on any device, each in a few calls."""

from __future__ import annotations

import torch
from torch.nn import functional

from services.worker.engine.torch.attention import attend, readers_of
from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.operators import Batch, HeadNorms, Quantised
from services.worker.engine.torch.rope import Rope, rotate


class PlainOperators:
    """Operators of a model in torch."""

    def __init__(self, config: ModelConfig, rope: Rope, block_size: int) -> None:
        self._config = config
        self._rope = rope
        self._block_size = block_size

    def on(self, batch: Batch) -> PlainStep:
        """Bind to a batch."""
        return PlainStep(self._config, self._rope, self._block_size, batch)

    def quantise(self, x: torch.Tensor) -> Quantised:
        """[rows, width] for an int8 product."""
        wide = x.float()
        most = wide.abs().amax(-1, keepdim=True).clamp(min=1e-30)  # NaN and infinity stay
        values = (wide * (127.0 / most) + 128.5).nan_to_num(nan=0.0).clamp(0, 255).to(torch.uint8)
        return Quantised(values, torch.where(torch.isfinite(most), most / 127.0, torch.nan))


class PlainStep:
    """Operators bound to a batch; see `StepOperators`."""

    def __init__(self, config: ModelConfig, rope: Rope, block_size: int, batch: Batch) -> None:
        self._config = config
        self._block_size = block_size
        self._places = batch.places
        self._cos, self._sin = rope.at(batch.positions)
        self._readers = readers_of(batch, config.heads // config.kv_heads, self._cos.dtype)

    def add_norm(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> torch.Tensor:
        if delta is not None:
            hidden += delta
        return self._norm(hidden, weight)

    def place(self, merged: torch.Tensor, norms: HeadNorms | None, pool: torch.Tensor) -> torch.Tensor:
        heads, kv_heads = self._config.heads, self._config.kv_heads
        by_head = merged.view(len(merged), -1, self._config.head_dim)
        query, key, value = by_head.tensor_split((heads, heads + kv_heads), dim=1)
        if norms is not None:
            query, key = self._norm(query, norms.query), self._norm(key, norms.key)
        pool[0].index_copy_(0, self._places, rotate(key, self._cos, self._sin))
        pool[1].index_copy_(0, self._places, value)
        return rotate(query, self._cos, self._sin)

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        attend(query, pool, self._readers, self._block_size, output)
        return output

    def gate(self, merged: torch.Tensor) -> torch.Tensor:
        gate, up = merged.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._config.norm_eps)
