"""Pinned memory between host and device: pieces in turn, none written while a copy of it is under way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from services.worker.engine.torch.cuda.device import Device, Stream


class Piece:
    """Pinned memory as both sides see it, and the event behind its last copy."""

    def __init__(self, device: Device, size: int) -> None:
        self.memory = device.pinned(size)  # [bytes]
        self.host: npt.NDArray[np.uint8] = self.memory.numpy()
        self.copied = device.event()


class PinnedRing:
    """`depth` pieces of `size` bytes. One more than the steps that may be ahead: then `take` never waits."""

    def __init__(self, device: Device, size: int, depth: int) -> None:
        self._pieces = [Piece(device, size) for _ in range(depth)]
        self._turn = 0

    def take(self) -> Piece:
        """The piece whose copy was enqueued longest ago; waits for it."""
        piece = self._pieces[self._turn]
        self._turn = (self._turn + 1) % len(self._pieces)
        piece.copied.wait()
        return piece


def upload(stream: Stream, piece: Piece, target: torch.Tensor, size: int) -> None:
    """Enqueue the copy of a piece's first `size` bytes to the first of a device's."""
    to, source = target[:size], piece.memory[:size]
    stream.run(lambda: copy(to, source))
    stream.record(piece.copied)


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """Between pinned memory and a device: enqueued, not waited for."""
    target.copy_(source, non_blocking=True)
