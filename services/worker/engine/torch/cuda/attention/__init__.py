"""Attention by kind of step, and what computes it: our kernels, or what has the same signature.

triton      ours; may be captured                                            any kind of step
varlen      torch's, where it takes a block table; may be captured           any kind of step
flashinfer  plans on the host, in memory that the device reads afterwards    steps that no graph holds
sdpa        each sequence gathered; needs rows on the host                   any, where no graph is captured
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from services.worker.engine.torch.cuda.arguments import AttentionRows

if TYPE_CHECKING:
    from services.worker.scheduler.step import Int32


class AttentionShape(NamedTuple):
    """What is the same in every step of a model."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    width: int  # blocks of a table
    dtype: torch.dtype
    device: torch.device

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


class HostRows(NamedTuple):
    """The sequences of a step as the host knows them, without padding."""

    slots: Int32  # [n]
    starts: Int32  # [n + 1]
    contexts: Int32  # [n], the row's own queries included


class Alternative(Protocol):
    """One way to compute attention."""

    @property
    def name(self) -> str: ...

    @property
    def captures(self) -> bool:
        """Whether launches can be captured: then `plan` does nothing."""

    def plan(self, rows: HostRows, tables: torch.Tensor) -> None:
        """Make ready for a step, once before its layers, in the stream that runs them."""

    def __call__(
        self,
        query: torch.Tensor,
        pool: torch.Tensor,
        rows: AttentionRows,
        tables: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        scale: float,
        block_size: int,
        deterministic: bool = False,
    ) -> None:
        """`kernels.attend`."""


class Attention:
    """`kernels.attend` by the alternative that is the choice for a step's kind."""

    def __init__(
        self, decode: Alternative, mixed: Alternative | None = None, eager: Alternative | None = None
    ) -> None:
        self.decode = decode
        self.mixed = mixed or decode
        self.eager = eager or self.mixed  # of a step that no graph holds
        self._is_eager = False

    @property
    def captures(self) -> bool:
        """Whether steps can be captured at all."""
        return self.decode.captures and self.mixed.captures

    @property
    def name(self) -> str:
        """Results differ by it."""
        names = (self.decode.name, self.mixed.name, self.eager.name)
        return names[0] if len({*names}) == 1 else "decode {}, mixed {}, eager {}".format(*names)

    @contextlib.contextmanager
    def planned(self, rows: HostRows, tables: torch.Tensor) -> Iterator[None]:
        """Around a step that no graph holds."""
        chosen = self._chosen(decodes=bool((rows.starts[1:] - rows.starts[:-1] == 1).all()), eager=True)
        chosen.plan(rows, tables)
        self._is_eager = True
        try:
            yield
        finally:
            self._is_eager = False

    def __call__(
        self,
        query: torch.Tensor,
        pool: torch.Tensor,
        rows: AttentionRows,
        tables: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        scale: float,
        block_size: int,
        deterministic: bool = False,
    ) -> None:
        chosen = self._chosen(decodes=rows.max_queries == 1, eager=self._is_eager)
        chosen(
            query, pool, rows, tables, out, workspace,
            scale=scale, block_size=block_size, deterministic=deterministic,
        )  # fmt: skip

    def _chosen(self, *, decodes: bool, eager: bool) -> Alternative:
        if decodes:
            return self.decode
        return self.eager if eager else self.mixed


class OwnAttention:
    """Our kernels, or their reference."""

    name = "triton"
    captures = True

    def __init__(self, kernels: Any) -> None:
        self._attend = kernels.attend

    def plan(self, rows: HostRows, tables: torch.Tensor) -> None:
        """Reads all on the device."""

    def __call__(
        self,
        query: torch.Tensor,
        pool: torch.Tensor,
        rows: AttentionRows,
        tables: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        scale: float,
        block_size: int,
        deterministic: bool = False,
    ) -> None:
        self._attend(
            query, pool, rows, tables, out, workspace,
            scale=scale, block_size=block_size, deterministic=deterministic,
        )  # fmt: skip
