"""The operators of a model over the kernels of this package."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch

from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.cuda.arguments import AttentionRows
from services.worker.engine.torch.cuda.attention import HostRows
from services.worker.engine.torch.cuda.inputs import StepBatch
from services.worker.engine.torch.operators import HeadNorms
from services.worker.engine.torch.rope import Rope

Kernels = Any  # the module `kernels`, or `reference`: the same functions


class Attend(Protocol):
    """`kernels.attend`, or what stands in for it."""

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
    ) -> None: ...


@runtime_checkable
class Plans(Protocol):
    """An `Attend` that must know the rows of a step that no graph holds."""

    @property
    def captures(self) -> bool:
        """Whether steps can be captured."""

    def planned(self, rows: HostRows, tables: torch.Tensor) -> AbstractContextManager[None]:
        """Around a step that no graph holds."""


class CudaOperators:
    """Operators of a model; `tables` and `workspace` are the runner's, which puts them here before a step."""

    tables: torch.Tensor  # int32 [max_seqs + 1, width]
    workspace: torch.Tensor  # fp32, for the largest bucket

    def __init__(
        self,
        config: ModelConfig,
        rope: Rope,
        block_size: int,
        kernels: Kernels,
        *,
        attend: Attend | None = None,
        deterministic: bool = False,
    ) -> None:
        self.config = config
        self.rope = rope
        self.block_size = block_size
        self.kernels = kernels
        self.deterministic = deterministic
        self.attend: Attend | None = attend
        self.scale = config.head_dim**-0.5

    @property
    def captures(self) -> bool:
        """Whether steps can be captured."""
        return not isinstance(self.attend, Plans) or self.attend.captures

    def planned(self, rows: HostRows) -> AbstractContextManager[None]:
        """Around a step that no graph holds."""
        if isinstance(self.attend, Plans):
            return self.attend.planned(rows, self.tables)
        return nullcontext()

    def on(self, batch: StepBatch, /) -> CudaStep:
        """Bind to a batch."""
        return CudaStep(self, batch)


class CudaStep:
    """Operators bound to a batch; see `StepOperators`. Each is one launch; what it returns is new memory."""

    def __init__(self, operators: CudaOperators, batch: StepBatch) -> None:
        self._operators = operators
        self._config = operators.config
        self._kernels = operators.kernels
        self._batch = batch

    def add_norm(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> torch.Tensor:
        out = torch.empty_like(hidden)
        self._kernels.add_norm(hidden, delta, weight, self._config.norm_eps, out)
        return out

    def place(self, merged: torch.Tensor, norms: HeadNorms | None, pool: torch.Tensor) -> torch.Tensor:
        config, batch, rope = self._config, self._batch, self._operators.rope
        query = merged.new_empty(len(merged), config.heads, config.head_dim)
        self._kernels.place(
            merged,
            None if norms is None else norms.query,
            None if norms is None else norms.key,
            config.norm_eps,
            rope.cos,
            rope.sin,
            batch.positions,
            batch.places,
            pool,
            query,
            config.heads,
            config.kv_heads,
        )
        return query

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        operators = self._operators
        out = torch.empty_like(query)
        attend: Attend = operators.attend or self._kernels.attend
        attend(
            query,
            pool,
            self._batch.rows,
            operators.tables,
            out,
            operators.workspace,
            scale=operators.scale,
            block_size=operators.block_size,
            deterministic=operators.deterministic,
        )
        return out

    def gate(self, merged: torch.Tensor) -> torch.Tensor:
        out = merged.new_empty(len(merged), self._config.ffn)
        self._kernels.gate(merged, out)
        return out
