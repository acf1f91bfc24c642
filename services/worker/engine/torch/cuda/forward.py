"""What a step is on the device: expand the inputs, run the model, choose; one list of launches a bucket."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.cuda.arguments import GrammarMasks, LogprobsOut
from services.worker.engine.torch.cuda.attention import HostRows
from services.worker.engine.torch.cuda.device import Device
from services.worker.engine.torch.cuda.inputs import Bucket, Inputs, StepBatch, expand
from services.worker.engine.torch.cuda.operators import CudaOperators
from services.worker.engine.torch.cuda.slots import DeviceSlots
from services.worker.engine.torch.model import Llama

NO_ROWS = HostRows(np.zeros(0, np.int32), np.zeros(1, np.int32), np.zeros(0, np.int32))
_TILE = 64  # tokens of a chunk that need as much workspace as one more


class Limits(NamedTuple):
    """What a runner is made for."""

    max_seqs: int  # slots
    max_len: int  # tokens of a sequence
    step_tokens: int  # most tokens of a step
    max_logprobs: int  # most log-probabilities of a row


class Forward:
    """The model with all memory that its steps use, made once."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        model: Llama[StepBatch],
        operators: CudaOperators,
        slots: DeviceSlots,
        limits: Limits,
        *,
        dtype: torch.dtype,
        grammar: bool,
    ) -> None:
        self.slots = slots
        self.layers: list[torch.Tensor] = []  # pools, [2, blocks + 1, block_size, kv_heads, head_dim]
        self.chosen = device.zeros((limits.max_seqs,), torch.int32)
        self.masks = device.zeros((limits.max_seqs, slots.mask_words), torch.int32) if grammar else None
        self._device = device
        self._config = config
        self._dtype = dtype
        self._model = model
        self._operators = operators
        self._kernels = operators.kernels
        self._block_size = operators.block_size
        self._logits = device.zeros((0, config.vocab_size), dtype)
        self._reserve(limits)
        self.give_blocks(0)

    @property
    def captures(self) -> bool:
        """Whether steps can be captured."""
        return self._operators.captures

    def give_blocks(self, blocks: int) -> None:
        """Memory for so many blocks and the scratch block, in one piece, instead of what was there."""
        config = self._config
        shape = (2, blocks + 1, self._block_size, config.kv_heads, config.head_dim)
        self.layers.clear()
        self.layers += self._device.zeros((config.layers, *shape), self._dtype).unbind(0)
        self.slots.tables[self.slots.scratch] = blocks

    def compute(self, bucket: Bucket, inputs: Inputs) -> None:
        """A step of this bucket; ids go to `chosen`, logits stay where `logprobs` finds them."""
        batch = expand(inputs, self.slots.tables, self.slots.state.last_token, self._block_size)
        logits = self._logits_of(self._model.scores(batch, self), bucket.rows)
        masks = None if self.masks is None else GrammarMasks(inputs.masks, self.masks)
        chosen = self.chosen[: bucket.rows]
        self._kernels.sample(
            logits, inputs.samplers, inputs.indices, masks, self.slots.state, chosen, self._sampling
        )

    def compute_planned(self, bucket: Bucket, inputs: Inputs, rows: HostRows) -> None:
        """The same for a step that no graph holds."""
        with self._operators.planned(rows):
            self.compute(bucket, inputs)

    def logprobs(self, rows: torch.Tensor, out: LogprobsOut) -> None:
        """Of these rows of the step that was computed last."""
        self._kernels.logprobs(self._logits, rows, self.chosen, out, self._logprobs)

    def hold_logits(self, inputs: Inputs, rows: int) -> None:
        """Make room for logits of `rows` rows, of the type that the model's last product has."""
        batch = expand(inputs, self.slots.tables, self.slots.state.last_token, self._block_size)
        with self._operators.planned(NO_ROWS):
            scores = self._model.scores(batch, self)
        self._logits = self._device.zeros((rows, scores.shape[1]), scores.dtype)

    def _logits_of(self, scores: torch.Tensor, rows: int) -> torch.Tensor:
        return self._logits[:rows].copy_(scores)

    def _reserve(self, limits: Limits) -> None:
        """Workspaces, each for the step that needs most."""
        kernels, rows, vocab = self._kernels, limits.max_seqs, self._config.vocab_size
        self._sampling = self._numbers(kernels.sampling_workspace(rows, vocab))
        self._logprobs = self._numbers(kernels.logprobs_workspace(rows, vocab, limits.max_logprobs))
        self._operators.workspace = self._numbers(self._attention_numbers(limits))
        self._operators.tables = self.slots.tables

    def _attention_numbers(self, limits: Limits) -> int:
        """Few rows may be split more than many: the most of any, for rows of one query and for tokens of
        chunks, which one step may have both."""
        config, operators = self._config, self._operators
        heads = (config.heads, config.kv_heads, config.head_dim, self.slots.width)
        rows = [(count, 1) for count in range(1, limits.max_seqs + 1)]
        tokens = [(1, count) for count in range(_TILE, limits.step_tokens + _TILE, _TILE)]
        return sum(
            max(
                self._kernels.attention_workspace(*shape, *heads, deterministic=operators.deterministic)
                for shape in shapes
            )
            for shapes in (rows, tokens)
        )

    def _numbers(self, count: int) -> torch.Tensor:
        return self._device.zeros((count,), torch.float32)
