"""Writing one safetensors file as a stream, so that converting a model takes the memory of one piece.

The format (https://huggingface.co/docs/safetensors): the header's length as 8 bytes little-endian, the
header as JSON, then the tensors' bytes back to back. A reader needs every offset before the first byte
of data, so the shapes are declared first.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BF16_BYTES = 2


class TensorPlan(NamedTuple):
    """A bf16 tensor that will be written."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * BF16_BYTES


def header_of(plans: Iterable[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """The file's head for `plans` in order, padded with spaces to 8 bytes as the format advises."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for plan in plans:
        begin, end = end, end + plan.num_bytes
        header[plan.name] = {"dtype": "BF16", "shape": list(plan.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_bf16_file(
    path: Path, plans: list[TensorPlan], pieces: Iterable[NDArray[np.float32]], metadata: Mapping[str, str]
) -> Iterator[int]:
    """Write `pieces`, which together are the values of `plans` in order, and yield the bytes of each.

    Raises:
        ValueError: the pieces do not add up to the plans.
    """
    planned = sum(plan.num_bytes for plan in plans)
    with path.open("wb") as file:
        file.write(header_of(plans, metadata))
        for piece in pieces:
            written = file.write(to_bf16(piece).data)
            planned -= written
            yield written
    if planned != 0:
        raise ValueError(f"{path.name}: the tensors are {planned} bytes short of what the header declares")


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bf16 bit patterns nearest to `values`, ties to even as hardware and torch round; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
