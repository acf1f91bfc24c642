"""The least time that a step can take on this card: what it must read and compute, at measured ceilings."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.gpu.ceilings import Ceilings
from services.worker.gpu.model_size import ModelSize


class Roofline(NamedTuple):
    """Of one model with one kind of products. KV is in bf16, and so are the products of logits."""

    size: ModelSize
    ceilings: Ceilings
    weight_bytes: float  # of one weight of a layer

    @classmethod
    def of(cls, config: dict[str, Any], ceilings: Ceilings, quantization: str) -> Roofline:
        return cls(ModelSize.of(config), ceilings, 2.0 if quantization == "none" else 1.0)

    def decode_s(self, batch: int, context: int) -> float:
        """A decode step: products take the larger of reading weights and computing; KV comes on top."""
        layers, head = self.size.layer_weights, self.size.head_weights
        read_s = (layers * self.weight_bytes + head * 2.0) / self.ceilings.read
        kv_s = batch * context * self.size.kv_values * 2.0 / self.ceilings.read
        computed_s = 2.0 * batch * (layers / self.flops_per_s + head / self.ceilings.bf16)
        return max(read_s, computed_s) + kv_s

    def decode_rate(self, batch: int, context: int) -> float:
        """Tokens a second."""
        return batch / self.decode_s(batch, context)

    def prefill_rate(self, prompt: int) -> float:
        """Tokens a second through all layers; attention is computed in bf16."""
        products_s = 2.0 * self.size.layer_weights / self.flops_per_s
        return 1.0 / (products_s + self.size.pair_flops * prompt / 2 / self.ceilings.bf16)

    def offline_rate(self, prompt: int, outputs: int, batch: int) -> float:
        """Output tokens a second when each costs its share of a prompt and of a full decode step."""
        decode_s = 1.0 / self.decode_rate(batch, prompt + outputs // 2)
        return 1.0 / (decode_s + prompt / outputs / self.prefill_rate(prompt))

    @property
    def flops_per_s(self) -> float:
        """Of products: of bytes, e4m3 or int8, where there are ceilings for them."""
        return self.ceilings.fp8 if self.weight_bytes == 1.0 and self.ceilings.fp8 else self.ceilings.bf16
