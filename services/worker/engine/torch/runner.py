"""Runs steps: arrays of the scheduler to tensors, forward pass, sampling, arrays back."""

from __future__ import annotations

import numpy as np
import torch

from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.kv import PagedKV, SlotTables
from services.worker.engine.torch.model import Llama
from services.worker.engine.torch.operators import Batch, Rows
from services.worker.engine.torch.sampler import ChosenLogprobs, Sampler
from services.worker.scheduler.step import (
    LAST_SAMPLED,
    NOT_SAMPLED,
    Capabilities,
    Int32,
    KVSpec,
    Logprobs,
    Masks,
    Sampled,
    Step,
)


class TorchPending:
    """Ids on the device. On CPU they are there, on CUDA reading them waits."""

    def __init__(
        self, rows: int, sampled: Int32, tokens: torch.Tensor | None, logprobs: ChosenLogprobs | None
    ) -> None:
        self._rows = rows
        self._sampled = sampled  # rows of the step that sampled
        self._tokens = tokens  # [sampled rows]
        self._logprobs = logprobs

    def result(self) -> Sampled:
        """Wait for the step."""
        tokens = np.full(self._rows, NOT_SAMPLED, np.int32)
        if self._tokens is not None:
            tokens[self._sampled] = self._tokens.cpu().numpy()
        return Sampled(tokens, None if self._logprobs is None else self._read_logprobs(self._logprobs))

    def _read_logprobs(self, logprobs: ChosenLogprobs) -> Logprobs:
        return Logprobs(
            self._sampled[logprobs.rows],
            logprobs.chosen.cpu().numpy(),
            logprobs.top_ids.to(torch.int32).cpu().numpy(),
            logprobs.top.cpu().numpy(),
        )


class TorchRunner:
    """A `Runner` of plain torch operations; computes within `launch` on CPU, enqueues on CUDA."""

    def __init__(
        self,
        model: Llama[Batch],
        config: ModelConfig,
        spec: KVSpec,
        capabilities: Capabilities,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.capabilities = capabilities
        self._model = model
        self._device = device
        self._kv = PagedKV(config, spec, dtype, device)
        self._tables = SlotTables(spec)
        self._sampler = Sampler(spec.max_seqs, config.vocab_size, device)
        self._last_sampled = torch.zeros(spec.max_seqs, dtype=torch.int64, device=device)  # [slots]

    @torch.inference_mode()
    def launch(self, step: Step) -> TorchPending:
        """Start a step; see `Runner`."""
        self._tables.update(step)
        for init in step.inits:
            self._sampler.begin(init)
        sampled = np.flatnonzero(step.samples).astype(np.int32)
        logits = self._model.forward(self._batch(step, sampled), self._kv)
        if not len(sampled):
            return TorchPending(len(step.slots), sampled, None, None)
        slots = step.slots[sampled]
        tokens, logprobs = self._sampler.sample(
            logits, slots.tolist(), step.output_indices[sampled], _of_sampled(step.masks, sampled)
        )
        if self.capabilities.run_ahead:
            self._last_sampled[self._tensor(slots)] = tokens.clamp(min=0)
        return TorchPending(len(step.slots), sampled, tokens, logprobs)

    def improve(self) -> bool:
        """Nothing to do."""
        return False

    def close(self) -> None:
        """Give KV memory back."""
        self._kv.layers.clear()

    def _batch(self, step: Step, sampled: Int32) -> Batch:
        ends = np.cumsum(step.query_lens, dtype=np.int32)
        row_of = np.repeat(np.arange(len(step.slots), dtype=np.int32), step.query_lens)  # [tokens]
        starts = ends - step.query_lens
        positions = np.arange(len(step.tokens), dtype=np.int32) + (step.context_lens - starts)[row_of]
        places = self._tables.places(step.slots[row_of], positions)
        rows = Rows(step.slots, starts, step.query_lens, step.context_lens + step.query_lens)
        return Batch(
            tokens=self._tokens(step, row_of),
            positions=self._tensor(positions),
            places=self._tensor(places),
            rows=rows,
            tables=self._tables,
            last=self._tensor(ends[sampled] - 1),
        )

    def _tokens(self, step: Step, row_of: Int32) -> torch.Tensor:
        tokens = self._tensor(step.tokens)
        unseen = np.flatnonzero(step.tokens == LAST_SAMPLED)
        if len(unseen):
            slots = self._tensor(step.slots[row_of[unseen]])
            tokens[self._tensor(unseen)] = self._last_sampled[slots]
        return tokens

    def _tensor(self, values: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self._device)


def _of_sampled(masks: Masks | None, sampled: Int32) -> Masks | None:
    """The same masks by their places among the sampled rows."""
    return None if masks is None else Masks(np.searchsorted(sampled, masks.rows).astype(np.int32), masks.bits)
