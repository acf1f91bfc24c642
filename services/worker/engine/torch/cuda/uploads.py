"""What a step copies to the device: its inputs and the changes of slots, in one piece and one copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from services.worker.engine.torch.cuda.device import Device, Stream
from services.worker.engine.torch.cuda.forward import Limits
from services.worker.engine.torch.cuda.inputs import WORD, Bucket, Geometry, fill, layout_of
from services.worker.engine.torch.cuda.slots import Changes, DeviceSlots, HistoryChange
from services.worker.engine.torch.cuda.staging import Piece, PinnedRing, upload
from services.worker.scheduler.step import Int32, Masks, Step

_CHANGES = 16384  # words that a step's own copy can change; more go ahead in copies of their own
_AHEAD = 2  # such copies a step before the host has to wait for one
_PLACE = 8  # bytes of a place

Write = Callable[[torch.Tensor, torch.Tensor], None]


class Upload(NamedTuple):
    """What lies behind a step's inputs on the device."""

    places: torch.Tensor | None  # int64 [n]
    words: torch.Tensor | None  # int32 [n]
    asked: torch.Tensor | None  # int32 [m], rows that ask for log-probabilities

    def apply(self, slots: DeviceSlots) -> None:
        """Write the changes."""
        if self.places is not None and self.words is not None:
            slots.write(self.places, self.words)


class Uploads:
    """Pinned pieces and the device's memory for them; copies run in the compute stream, in their order."""

    def __init__(
        self,
        device: Device,
        compute: Stream,
        slots: DeviceSlots,
        masks: torch.Tensor | None,
        limits: Limits,
        geometry: Geometry,
        depth: int,
    ) -> None:
        most = layout_of(Bucket(limits.max_seqs, limits.step_tokens, limits.step_tokens)).size * WORD
        size = most + _CHANGES * (_PLACE + WORD) + limits.max_seqs * WORD + 64
        self.bytes = 0
        self._memory = device.zeros((size,), torch.uint8)
        self.words = self._memory.view(torch.int32)[: most // WORD]
        self._ring = PinnedRing(device, size, depth)
        self._ahead_ring = PinnedRing(device, _CHANGES * (_PLACE + WORD), _AHEAD * depth)
        self._compute = compute
        self._slots = slots
        self._geometry = geometry
        self._masks = masks  # int32 [max_seqs, words]
        self._mask_ring = None if masks is None else PinnedRing(device, masks.nbytes, depth)

    def send(
        self,
        step: Step,
        bucket: Bucket,
        changes: list[Changes],
        histories: list[HistoryChange],
        asked: Int32 | None,
    ) -> Upload:
        """Enqueue the copies of a step; what is returned is to be applied in the compute stream."""
        for history in histories:
            self._compute.run(partial(self._slots.clear_history, history.slot))
        if histories:
            self._ahead([history.changes for history in histories], self._slots.write_history)
        if sum(len(change.words) for change in changes) > _CHANGES:
            self._ahead(changes, self._slots.write)
            changes = []
        if step.masks is not None:
            self._send_masks(step.masks)
        piece = self._ring.take()
        fill(piece.host.view(np.int32), bucket, step, self._geometry)
        return self._send(piece, layout_of(bucket).size * WORD, changes, asked)

    def _send(self, piece: Piece, start: int, changes: list[Changes], asked: Int32 | None) -> Upload:
        count = sum(len(change.words) for change in changes)
        middle = start + count * _PLACE
        end = middle + count * WORD
        if count:
            np.concatenate([each.places for each in changes], out=piece.host[start:middle].view(np.int64))
            np.concatenate([each.words for each in changes], out=piece.host[middle:end].view(np.int32))
        first = -(-end // 16) * 16
        size = end if asked is None else first + len(asked) * WORD
        if asked is not None:
            piece.host[first:size].view(np.int32)[:] = asked
        self._copy(piece, self._memory, size)
        places, words = self._changes_at(start, count) if count else (None, None)
        rows = None if asked is None else self._memory[first:size].view(torch.int32)
        return Upload(places, words, rows)

    def _ahead(self, changes: list[Changes], write: Write) -> None:
        """Write changes in copies of their own, before the step's: prompts under penalties, long tables."""
        places = np.concatenate([each.places for each in changes])
        words = np.concatenate([each.words for each in changes])
        for first in range(0, len(words), _CHANGES):
            part = slice(first, first + _CHANGES)
            count = len(words[part])
            piece, middle = self._ahead_ring.take(), count * _PLACE
            piece.host[:middle].view(np.int64)[:] = places[part]
            piece.host[middle : middle + count * WORD].view(np.int32)[:] = words[part]
            self._copy(piece, self._memory, middle + count * WORD)
            self._compute.run(partial(write, *self._changes_at(0, count)))

    def _changes_at(self, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        middle = start + count * _PLACE
        places = self._memory[start:middle].view(torch.int64)
        return places, self._memory[middle : middle + count * WORD].view(torch.int32)

    def _send_masks(self, masks: Masks) -> None:
        assert self._masks is not None, "grammars are no capability"
        assert self._mask_ring is not None
        piece, width = self._mask_ring.take(), self._masks.shape[1] * WORD
        bits = masks.bits[:, :width]
        piece.host[: len(bits) * width].reshape(len(bits), width)[:, : bits.shape[1]] = bits
        self._copy(piece, self._masks.view(-1).view(torch.uint8), len(bits) * width)

    def _copy(self, piece: Piece, target: torch.Tensor, size: int) -> None:
        self.bytes += size
        upload(self._compute, piece, target, size)
