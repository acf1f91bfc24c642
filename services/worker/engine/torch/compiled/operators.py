"""The model's operators in kernels compiled for its shapes and for this CPU."""

from __future__ import annotations

import numpy as np
import torch

from services.worker.engine.torch.compiled.attention import compile_attention
from services.worker.engine.torch.compiled.int8_product import Int8Products, can_multiply_int8
from services.worker.engine.torch.compiled.int8_tile import GROUP, PART
from services.worker.engine.torch.compiled.jit import BFLOAT16, FLOAT32
from services.worker.engine.torch.compiled.placing import TOKENS_A_UNIT, compile_placing
from services.worker.engine.torch.compiled.product import WIDTH, Products, can_multiply
from services.worker.engine.torch.compiled.rowwise import (
    ROWS_A_UNIT,
    compile_gate,
    compile_norm,
    compile_quantise,
)
from services.worker.engine.torch.compiled.team import Team, kernel_of
from services.worker.engine.torch.compiled.tile import MOST_ROWS, multiplies_bfloat16
from services.worker.engine.torch.config import ModelConfig, matrix_sizes
from services.worker.engine.torch.linear import Int8Linear, Linear, make_linear
from services.worker.engine.torch.operators import Batch, HeadNorms, Quantised, Rows
from services.worker.engine.torch.rope import Rope
from services.worker.scheduler.step import Int64


class CompiledOperators:
    """Kernels of a model; see `Operators`. Tensors are contiguous and on the CPU."""

    def __init__(
        self,
        config: ModelConfig,
        rope: Rope,
        block_size: int,
        *,
        dtype: torch.dtype,
        threads: int,
        quantised: bool,
        deterministic: bool = False,
    ) -> None:
        kind = BFLOAT16 if dtype == torch.bfloat16 else FLOAT32
        shape = (config.heads, config.kv_heads, config.head_dim, block_size)
        placing = compile_placing(kind, *shape, normed=config.qk_norm, eps=config.norm_eps)
        self.config = config
        self.dtype = dtype
        self.rope = rope
        self.block_size = block_size
        self.team = Team(threads)
        self._products = Products(self.team, kind) if deterministic or can_multiply(kind) else None
        self._must_multiply = deterministic
        self._int8 = Int8Products(self.team, dtype) if quantised and can_multiply_int8() else None
        self.name = "compiled, pairs at once" if multiplies_bfloat16() else "compiled"
        if self._products is not None:
            self.name += ", products too"
        if self._int8 is not None:
            self.name += f", int8 by {PART} inputs, weights by {GROUP}"
        self._compiled = (
            compile_attention(kind, *shape),
            placing,
            compile_norm(kind, config.hidden, config.norm_eps),
            compile_gate(kind, config.ffn),
            *((compile_quantise(kind),) if quantised else ()),
        )
        kernels = [kernel_of(compiled) for compiled in self._compiled]
        self.attention, self.placing, self.norm, self.gate = kernels[:4]
        self._quantise = kernels[4] if quantised else None

    def on(self, batch: Batch) -> CompiledStep:
        """Bind to a batch."""
        return CompiledStep(self, batch)

    @property
    def deterministic(self) -> bool:
        """Whether ids do not depend on neighbours: products in 8 bits are exact, others must be our own."""
        if self._quantise is not None:
            return True
        return all(self._multiplies(*sizes) for sizes in matrix_sizes(self.config))

    def _multiplies(self, outputs: int, inputs: int) -> bool:
        """Whether a product is our own; of matrices that are no whole panels, where only that will do."""
        products = self._products
        if products is None or not products.can_take(inputs):
            return False
        return self._must_multiply or outputs % WIDTH == 0

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False) -> Linear:
        """The fastest layout for this CPU; see `MakeLinear`."""
        if self._products is not None and self._multiplies(*weight.shape):
            return self._products.linear(weight, bias, wide=wide)
        return make_linear(weight, bias)

    def int8_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, wide: bool = False
    ) -> Linear:
        """The same in 8 bits: by groups of inputs, or by tokens where CPU or matrix are not made for that."""
        if self._int8 is not None and self._int8.fits(weight):
            return self._int8.linear(weight, bias, wide=wide)
        return Int8Linear(weight, bias, quantise=self.quantise, wide=wide)

    def quantise(self, x: torch.Tensor) -> Quantised:
        """[rows, width] for an int8 product by tokens."""
        assert self._quantise is not None, "made for a model that is not quantised"
        rows, width = x.shape
        values, scales = torch.empty(rows, width, dtype=torch.uint8), torch.empty(rows, 1)
        self.team.run(
            self._quantise,
            -(-rows // ROWS_A_UNIT),
            x.data_ptr(),
            values.data_ptr(),
            scales.data_ptr(),
            rows,
            width,
        )
        return Quantised(values, scales)


class CompiledStep:
    """Operators bound to a batch; see `StepOperators`."""

    def __init__(self, operators: CompiledOperators, batch: Batch) -> None:
        self._operators = operators
        self._batch = batch
        group = operators.config.heads // operators.config.kv_heads
        self._pieces = pieces_of(batch.rows, MOST_ROWS // group)
        self._begun = _begun_blocks(batch, operators.block_size)

    def add_norm(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor
    ) -> torch.Tensor:
        output = torch.empty_like(hidden)
        self._operators.team.run(
            self._operators.norm,
            -(-len(hidden) // ROWS_A_UNIT),
            hidden.data_ptr(),
            0 if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            output.data_ptr(),
            len(hidden),
        )
        return output

    def place(self, merged: torch.Tensor, norms: HeadNorms | None, pool: torch.Tensor) -> torch.Tensor:
        config, rope = self._operators.config, self._operators.rope
        if self._begun is not None:
            pool[1].view(-1, self._operators.block_size * config.kv_heads * config.head_dim)[self._begun] = 0
        group = config.heads // config.kv_heads
        query = merged.new_empty(config.kv_heads, len(merged), group, config.head_dim)
        self._operators.team.run(
            self._operators.placing,
            -(-len(merged) // TOKENS_A_UNIT),
            merged.data_ptr(),
            query.data_ptr(),
            pool.data_ptr(),
            pool[1].data_ptr(),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            self._batch.positions.data_ptr(),
            self._batch.places.data_ptr(),
            len(merged),
            0 if norms is None else norms.query.data_ptr(),
            0 if norms is None else norms.key.data_ptr(),
        )
        return query

    def attend(self, query: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
        config, tokens = self._operators.config, query.shape[1]
        output = query.new_empty(tokens, config.heads, config.head_dim)
        tables = self._batch.tables.array
        self._operators.team.run(
            self._operators.attention,
            len(self._pieces) * config.kv_heads,
            query.data_ptr(),
            pool.data_ptr(),
            pool[1].data_ptr(),
            output.data_ptr(),
            self._pieces.ctypes.data,
            len(self._pieces),
            tables.ctypes.data,
            tables.shape[1],
            tokens,
        )
        return output

    def gate(self, merged: torch.Tensor) -> torch.Tensor:
        output = merged.new_empty(len(merged), self._operators.config.ffn)
        self._operators.team.run(
            self._operators.gate,
            -(-len(merged) // ROWS_A_UNIT),
            merged.data_ptr(),
            output.data_ptr(),
            len(merged),
        )
        return output


def pieces_of(rows: Rows, most: int) -> Int64:
    """Each row's queries by at most so many, [pieces, 4]: first token, queries, slot, first position."""
    if rows.queries.max(initial=0) <= 1:  # decodes alone, the usual step
        alone = (rows.starts, rows.queries, rows.slots, rows.contexts - rows.queries)
        return np.stack(alone, axis=1, dtype=np.int64)
    counts = -(-rows.queries // most)
    row_of = np.repeat(np.arange(len(counts)), counts)
    within = (np.arange(len(row_of)) - (np.cumsum(counts) - counts)[row_of]) * most
    queries = rows.queries[row_of]
    return np.stack(
        (
            rows.starts[row_of] + within,
            np.minimum(queries - within, most),
            rows.slots[row_of],
            rows.contexts[row_of] - queries + within,
        ),
        axis=1,
        dtype=np.int64,
    )


def _begun_blocks(batch: Batch, block_size: int) -> torch.Tensor | None:
    """Blocks that begin in this step and stay partly empty."""
    contexts, queries = batch.rows.contexts, batch.rows.queries
    filled = contexts % block_size
    begun = (filled > 0) & (queries >= filled)
    if not begun.any():
        return None
    blocks = batch.tables.array[batch.rows.slots[begun], contexts[begun] // block_size]
    return torch.from_numpy(blocks.astype(np.int64))
