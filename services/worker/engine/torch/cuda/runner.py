"""The runner for a CUDA device: the host sends what changes, launches one graph, and reads ids a step later.

    host      fill pinned memory ──▶ launch N+1 ──▶ read ids of N ─────▶ …
    compute   copy in ─▶ changes of slots ─▶ graph: forward pass and choice ─▶ log-probabilities
    download                                                                     └▶ ids to pinned memory

A step's next token is read on the device from what its slot chose last, so that the host may be one step
behind. All memory is made at the start.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from services.worker.engine.torch.cuda.attention import HostRows
from services.worker.engine.torch.cuda.device import Device, Graph, Work
from services.worker.engine.torch.cuda.forward import NO_ROWS, Forward, Limits
from services.worker.engine.torch.cuda.graphs import Graphs
from services.worker.engine.torch.cuda.inputs import (
    Bucket,
    Geometry,
    empty_step,
    inputs_of,
)
from services.worker.engine.torch.cuda.ranges import step_marks
from services.worker.engine.torch.cuda.results import Asked, CudaPending, Result, Results
from services.worker.engine.torch.cuda.sizing import kv_budget
from services.worker.engine.torch.cuda.slots import SlotChanges
from services.worker.engine.torch.cuda.uploads import Upload, Uploads
from services.worker.scheduler.step import Capabilities, KVSpec, Step

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST_GRAPH = 1024  # tokens


class CudaRunner:
    """A `Runner` of kernels and graphs. `launch` only enqueues.

    fit: from the bytes that are left for KV memory to a spec. Raises what that raises.
    """

    def __init__(
        self,
        device: Device,
        forward: Forward,
        limits: Limits,
        capabilities: Capabilities,
        fit: Callable[[int], KVSpec],
        *,
        block_size: int,
        vocab: int,
    ) -> None:
        self.capabilities = capabilities
        self._device = device
        self._forward = forward
        self._limits = limits
        self._compute = device.stream()
        self._marked = step_marks(device.where)
        depth = capabilities.run_ahead + 1
        slots = forward.slots
        geometry = Geometry(slots.scratch, slots.width, block_size)
        device.synchronize()  # weights and memory are there
        self._changes = SlotChanges(slots, limits.max_seqs, vocab, block_size)
        self._uploads = Uploads(device, self._compute, slots, forward.masks, limits, geometry, depth)
        self._results = Results(device, limits.max_seqs, limits.max_logprobs, depth)
        self._graphs = Graphs(
            self._capture if forward.captures else None, limits.max_seqs, limits.step_tokens
        )
        self.spec = self._make_room(fit)
        self._graphs.capture_first()

    @property
    def host_to_device_bytes(self) -> int:
        """Copied for steps since it was made."""
        return self._uploads.bytes

    @torch.inference_mode()
    def launch(self, step: Step) -> CudaPending:
        """Start a step; see `Runner`."""
        with self._marked(step):
            return self._enqueue(step)

    def _enqueue(self, step: Step) -> CudaPending:
        rows, tokens = len(step.slots), len(step.tokens)
        assert rows <= self._limits.max_seqs, "more rows than slots"
        assert tokens <= self._limits.step_tokens, "a larger step than there is memory for"
        fitting = self._graphs.fitting(rows, tokens)
        bucket = Bucket(rows, tokens, int(step.query_lens.max())) if fitting is None else fitting[0]
        changes = [*self._changes.of(step)]
        histories = [*self._changes.histories(step)]
        asked = self._asked(step)
        result = self._results.begin(rows, asked)
        upload = self._uploads.send(step, bucket, changes, histories, None if asked is None else asked.rows)
        work = self._eager(step, bucket) if fitting is None else fitting[1].replay
        self._compute.run(partial(self._run, work, upload, result))
        self._results.send(result, self._compute)
        return CudaPending(result, step.samples, asked)

    @torch.inference_mode()
    def improve(self) -> bool:
        """Capture one more bucket; whether there are more to come."""
        return self._graphs.capture_next()

    def close(self) -> None:
        """Give KV memory back."""
        self._device.synchronize()
        self._forward.layers.clear()

    def _run(self, work: Work, upload: Upload, result: Result) -> None:
        """On the device: everything but copies."""
        upload.apply(self._forward.slots)
        work()
        result.tokens.copy_(self._forward.chosen[: len(result.tokens)])
        if upload.asked is not None:
            self._forward.logprobs(upload.asked, result.logprobs)

    def _eager(self, step: Step, bucket: Bucket) -> Work:
        starts = np.concatenate((np.zeros(1, np.int32), np.cumsum(step.query_lens, dtype=np.int32)))
        rows = HostRows(step.slots, starts, step.context_lens + step.query_lens)
        return partial(self._forward.compute_planned, bucket, inputs_of(self._uploads.words, bucket), rows)

    def _asked(self, step: Step) -> Asked | None:
        wanted = np.where(step.samples, self._changes.logprobs[step.slots], -1)
        rows = np.flatnonzero(wanted >= 0)
        if not len(rows):
            return None
        return Asked(rows.astype(np.int32), max(1, int(wanted.max())))

    @torch.inference_mode()
    def _capture(self, bucket: Bucket) -> Graph:
        """After a run of padding alone: libraries and kernels make ready at their first call."""
        self._pad(bucket)
        work = partial(self._forward.compute, bucket, inputs_of(self._uploads.words, bucket))
        self._compute.run(work)
        return self._device.capture(self._compute, work)

    @torch.inference_mode()
    def _make_room(self, fit: Callable[[int], KVSpec]) -> KVSpec:
        """Measure the largest steps with logits of all rows, then take KV memory for good."""
        limits, forward = self._limits, self._forward
        self._pad(one := Bucket(1, 1, 1))
        hold = partial(forward.hold_logits, inputs_of(self._uploads.words, one), limits.max_seqs)
        self._compute.run(hold)
        self._device.synchronize()
        largest = self._peak(min(limits.max_seqs, limits.step_tokens), limits.step_tokens)
        tokens = min(limits.step_tokens, max(_LARGEST_GRAPH, limits.max_seqs))
        captured = self._peak(min(limits.max_seqs, tokens), tokens)
        memory = self._device.memory()
        spec = fit(kv_budget(memory, largest, captured, self._graphs.planned))
        forward.give_blocks(spec.num_blocks)
        self._device.synchronize()
        return spec

    def _peak(self, rows: int, tokens: int) -> int:
        bucket = Bucket(rows, tokens, tokens)
        self._pad(bucket)
        inputs = inputs_of(self._uploads.words, bucket)
        compute = self._forward.compute
        if not self._forward.captures:
            compute = partial(self._forward.compute_planned, rows=NO_ROWS)
        return self._device.measure(self._compute, partial(compute, bucket, inputs))

    def _pad(self, bucket: Bucket) -> None:
        self._uploads.send(empty_step(), bucket, [], [], None)
