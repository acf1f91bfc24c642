"""What a forward pass is made of besides products: the seam between the model and what a device does best.

`plain.py` does it in torch on any device, `compiled/` in kernels made for this CPU,
`cuda/` in kernels for GPUs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

import torch

from services.worker.engine.torch.kv import SlotTables
from services.worker.scheduler.step import Int32


class Rows(NamedTuple):
    """The sequences of a step, on the host, each [n]."""

    slots: Int32
    starts: Int32  # first of a sequence's queries among the step's tokens
    queries: Int32
    contexts: Int32  # tokens to read, the queries included


class Inputs(Protocol):
    """What the model itself reads of the tokens of a step; operators read more."""

    @property
    def tokens(self) -> torch.Tensor:
        """[tokens] ids"""

    @property
    def last(self) -> torch.Tensor:
        """[sampled rows], which tokens' logits are wanted"""


InputsT = TypeVar("InputsT", bound=Inputs, contravariant=True)


class Batch(NamedTuple):
    """The tokens of one step, its sequences on the host."""

    tokens: torch.Tensor  # [tokens] int64
    positions: torch.Tensor  # [tokens] int64
    places: torch.Tensor  # [tokens] int64, rows of the pool where their keys and values go
    rows: Rows
    tables: SlotTables
    last: torch.Tensor  # [sampled rows] int64, which tokens' logits are wanted


class HeadNorms(NamedTuple):
    """Weights of the norms of query and key heads, each [head_dim] (Qwen3)."""

    query: torch.Tensor
    key: torch.Tensor


class StepOperators(Protocol):
    """Operators bound to the batch of one step."""

    def add_norm(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> torch.Tensor:
        """Add `delta` to `hidden` in place, both [tokens, hidden]; return its root-mean-square norm."""

    def place(self, merged: torch.Tensor, norms: HeadNorms | None, pool: torch.Tensor) -> torch.Tensor:
        """From [tokens, (heads + 2 kv_heads) * head_dim] keep keys and values in a layer's pool, laid out
        as `attend` reads them; return the queries for `attend`. Positions are rotated in."""

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        """Queries over a layer's pool; [tokens, heads, head_dim] out."""

    def gate(self, merged: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of [tokens, 2 ffn], gate first; [tokens, ffn]"""


class Quantised(NamedTuple):
    """Rows in 8 bits around 128, each by its own scale."""

    values: torch.Tensor  # [rows, width] uint8
    scales: torch.Tensor  # [rows, 1] fp32


class Operators(Protocol[InputsT]):
    """Operators of a model on a device."""

    def on(self, batch: InputsT, /) -> StepOperators:
        """Bind to a batch."""
