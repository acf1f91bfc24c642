"""Which part of a card's ceilings the engine's steps used: MBU and MFU, from what had to be done.

    MBU = (bytes of the weights * steps + KV bytes that decodes read) / seconds / bytes a second
    MFU = (2 * layer weights * tokens + 2 * head weights * outputs + 4 * layers * heads * head_dim * pairs)
          / seconds / FLOPs a second

A pair is a query and a token that it reads. Work done again counts, padding and what prompts read do not.
"""

from __future__ import annotations

from typing import NamedTuple

from services.worker.engine.report import Work
from services.worker.gpu.card import Card
from services.worker.gpu.model_size import ModelSize

_WEIGHT_BYTES = {"bfloat16": 2.0, "float32": 4.0, "int8": 1.0, "fp8": 1.0}  # by EngineDescription.dtype
_LEAST_HEAD_BYTES = 2.0  # of a weight: logits are never in 8 bits
_PRODUCT_RATE = {"bfloat16": 1.0, "int8": 2.0, "fp8": 2.0}  # of bf16's: bytes go twice as fast


class Utilisation(NamedTuple):
    """Parts of 1, by seconds in steps ("busy") and by the clock ("wall"); None where it cannot be known."""

    mbu_busy: float | None
    mbu_wall: float | None
    mfu_busy: float | None
    mfu_wall: float | None


class Meter:
    """Utilisation between two totals of the engine's work."""

    def __init__(self, size: ModelSize, dtype: str, card: Card) -> None:
        self._size = size
        self._weight_bytes = _WEIGHT_BYTES.get(dtype)
        self._kv_bytes = 4.0 if dtype == "float32" else 2.0
        self._bytes_per_s = card.bytes_per_s if dtype in _WEIGHT_BYTES else None
        rate = _PRODUCT_RATE.get(dtype)
        self._flops_per_s = card.flops_per_s * rate if rate and card.flops_per_s else None

    def between(self, before: Work, after: Work, wall_s: float) -> Utilisation:
        """Of the steps between; None for all where there was none."""
        done = after.since(before)
        busy_s = min(done.busy_s, wall_s)
        bytes_read, flops = self._bytes(done), self._flops(done)
        return Utilisation(
            _part(bytes_read, busy_s, self._bytes_per_s),
            _part(bytes_read, wall_s, self._bytes_per_s),
            _part(flops, busy_s, self._flops_per_s),
            _part(flops, wall_s, self._flops_per_s),
        )

    def _bytes(self, done: Work) -> float:
        each = self._weight_bytes or 0.0
        weights = self._size.layer_weights * each + self._size.head_weights * max(each, _LEAST_HEAD_BYTES)
        return weights * done.steps + self._size.kv_values * self._kv_bytes * done.decode_reads

    def _flops(self, done: Work) -> float:
        products = self._size.layer_weights * done.tokens + self._size.head_weights * done.outputs
        return 2.0 * products + self._size.pair_flops * done.pairs


def _part(amount: float, seconds: float, ceiling: float | None) -> float | None:
    return None if ceiling is None or not amount or seconds <= 0 else amount / seconds / ceiling
