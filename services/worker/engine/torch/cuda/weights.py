"""Weights from files to the device: threads read ahead into pinned memory, copies run beside them.

rehearsal   the model is built once of shapes alone: everything is checked, and the order is known
reading     threads fill pinned pieces in that order, as far ahead as there are pieces
taking      the model is built; each matrix is copied to where it stays, merged ones part by part
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from services.worker.engine.errors import ModelFormatError
from services.worker.engine.torch.cuda.device import Device
from services.worker.engine.torch.cuda.staging import Piece, upload
from services.worker.engine.torch.weights import WeightSource, check, lacking, unreadable

THREADS = 8
PIECE_BYTES = 32 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Stored(NamedTuple):
    """A tensor in a file."""

    path: Path
    start: int  # byte of the file
    shape: tuple[int, ...]
    dtype: torch.dtype


class Part(NamedTuple):
    """What one piece holds of a tensor."""

    name: str
    stored: Stored
    first: int  # number of the tensor's
    numbers: int


class Rehearsal:
    """A `WeightSource` of shapes: checks each and notes which come when."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.names: list[str] = []
        self._stored = stored

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """See `WeightSource`."""
        if name not in self._stored:
            raise lacking(name)
        check(name, self._stored[name].shape, self._stored[name].dtype, shape)
        self.names.append(name)
        return torch.empty(shape, device="meta")

    def merge(self, rows_of: Mapping[str, int], *columns: int) -> torch.Tensor:
        """See `WeightSource`."""
        for name, rows in rows_of.items():
            self.take(name, rows, *columns)
        return torch.empty(sum(rows_of.values()), *columns, device="meta")


class PinnedWeights:
    """A `WeightSource` that hands tensors out in the order of a rehearsal."""

    def __init__(
        self,
        stored: Mapping[str, Stored],
        names: list[str],
        device: Device,
        dtype: torch.dtype,
        *,
        threads: int = THREADS,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._stored = stored
        self._device = device
        self._dtype = dtype
        self._stream = device.stream()
        self._parts = deque(part for name in names for part in self._cut(name, piece_bytes))
        self._reads: deque[tuple[Part, Future[Piece]]] = deque()  # under way or done, in order
        self._copying: deque[Piece] = deque()
        self._most_copying = threads
        self._readers = ThreadPoolExecutor(threads, "weights")
        for _ in range(2 * threads):
            self._read_into(Piece(device, piece_bytes))

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """See `WeightSource`."""
        return self.merge({name: shape[0]}, *shape[1:])

    def merge(self, rows_of: Mapping[str, int], *columns: int) -> torch.Tensor:
        """See `WeightSource`."""
        shape = (sum(rows_of.values()), *columns)
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device.where)
        rest = tensor.view(-1)
        for name in rows_of:
            rest = self._fill(name, rest)
        while self._copying:
            self._reuse()
        return tensor

    def close(self) -> None:
        """End the threads. Idempotent."""
        self._readers.shutdown(cancel_futures=True)
        self._device.synchronize()

    def _fill(self, name: str, target: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the beginning of `target`; returns what is left of that."""
        left = torch.Size(self._stored[name].shape).numel()
        while left:
            part, read = self._reads.popleft()
            assert part.name == name, f"{part.name} comes before {name}"
            piece = _done(read, name)
            size = part.numbers * self._dtype.itemsize
            upload(self._stream, piece, target[: part.numbers].view(torch.uint8), size)
            self._copying.append(piece)
            target, left = target[part.numbers :], left - part.numbers
            if len(self._copying) > self._most_copying:
                self._reuse()
        return target

    def _reuse(self) -> None:
        """The piece that was copied first is to be had again."""
        piece = self._copying.popleft()
        piece.copied.wait()
        self._read_into(piece)

    def _read_into(self, piece: Piece) -> None:
        """Have a thread read what comes next. A piece at a time: what is wanted first never waits for one."""
        if self._parts:
            part = self._parts.popleft()
            self._reads.append((part, self._readers.submit(self._read, part, piece)))

    def _cut(self, name: str, piece_bytes: int) -> Iterator[Part]:
        stored = self._stored[name]
        most = piece_bytes // max(stored.dtype.itemsize, self._dtype.itemsize)
        total = torch.Size(stored.shape).numel()
        for first in range(0, total, most):
            yield Part(name, stored, first, min(most, total - first))

    def _read(self, part: Part, piece: Piece) -> Piece:
        """In a thread: fill a piece, in the engine's dtype."""
        stored, itemsize = part.stored, part.stored.dtype.itemsize
        same = stored.dtype == self._dtype
        size, start = part.numbers * itemsize, stored.start + part.first * itemsize
        raw = memoryview(piece.host[:size].data if same else bytearray(size))
        _read_file(raw, stored.path, start)
        if not same:
            target = piece.memory[: part.numbers * self._dtype.itemsize].view(self._dtype)
            target.copy_(torch.frombuffer(raw, dtype=stored.dtype))
        return piece


@contextlib.contextmanager
def open_pinned_weights(
    paths: tuple[Path, ...],
    rehearse: Callable[[WeightSource], object],
    *,
    dtype: torch.dtype,
    device: Device,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[PinnedWeights]:
    """Begin to read what `rehearse` takes, in its order. Raises ModelFormatError."""
    stored = {name: each for path in paths for name, each in headers(path).items()}
    rehearsal = Rehearsal(stored)
    rehearse(rehearsal)
    weights = PinnedWeights(stored, rehearsal.names, device, dtype, piece_bytes=piece_bytes)
    try:
        yield weights
    finally:
        weights.close()


def headers(path: Path) -> dict[str, Stored]:
    """The tensors of a file. Raises ModelFormatError for a missing, truncated or corrupt one."""
    try:
        with safe_open(path, framework="pt", device="cpu"):  # checks the header against the file's size
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            described = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(f"{path} is no readable safetensors file ({error}); fetch it again") from error
    described.pop("__metadata__", None)
    return {
        name: Stored(
            path, 8 + length + each["data_offsets"][0], tuple(each["shape"]), _dtype(name, each["dtype"])
        )
        for name, each in described.items()
    }


def _dtype(name: str, label: str) -> torch.dtype:
    if label not in _DTYPES:
        raise ModelFormatError(f"the weights' {name} has dtype {label}; expected bf16, fp16 or fp32")
    return _DTYPES[label]


def _done(read: Future[Piece], name: str) -> Piece:
    try:
        return read.result()
    except OSError as error:
        raise unreadable(name, error) from error


def _read_file(target: memoryview, path: Path, start: int) -> None:
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < len(target):
            count = os.preadv(file.fileno(), [target[done:]], start + done)
            if not count:
                raise OSError(f"{path} ends early")
            done += count
