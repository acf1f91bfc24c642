"""What work costs at least: FLOPs and bytes of a model's steps, and which part of a ceiling was reached.

    FLOPs = 2 * layer weights * tokens + 2 * head weights * outputs + 4 * layers * heads * head_dim * pairs
    bytes = layer and head weights * steps + KV bytes a token * tokens that decodes read

A pair is a query and a token that it reads. Embeddings are looked up, not multiplied; reading KV in prompts
and writing it is left out of the bytes, recomputed tokens out of both: what was useful counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from services.worker.gpu.model_size import ModelSize

__all__ = ["ModelSize", "Useful", "bytes_read", "flops"]


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
