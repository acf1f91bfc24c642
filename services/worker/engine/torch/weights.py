"""Weights out of safetensors files: every tensor is checked against the shape that config.json implies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from services.worker.engine.errors import ModelFormatError


class WeightSource(Protocol):
    """Where a model takes its weights from: each once, in the engine's dtype, on its device.

    Both raise ModelFormatError.
    """

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """One tensor."""

    def merge(self, rows_of: Mapping[str, int], *columns: int) -> torch.Tensor:
        """Tensors of so many rows each, one below the other in one."""


class Weights:
    """Named tensors over one or more files. The files are mapped: what is not asked for is not read."""

    def __init__(self, files: dict[str, Any], *, dtype: torch.dtype, device: torch.device) -> None:
        self._files = files  # tensor name -> open file
        self._dtype = dtype
        self._device = device

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """See `WeightSource`."""
        if name not in self._files:
            raise lacking(name)
        try:
            tensor: torch.Tensor = self._files[name].get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise unreadable(name, error) from error
        check(name, tuple(tensor.shape), tensor.dtype, shape)
        return tensor.to(device=self._device, dtype=self._dtype)

    def merge(self, rows_of: Mapping[str, int], *columns: int) -> torch.Tensor:
        """See `WeightSource`."""
        return torch.cat([self.take(name, rows, *columns) for name, rows in rows_of.items()])


def check(name: str, shape: tuple[int, ...], dtype: torch.dtype, implied: tuple[int, ...]) -> None:
    """Whether a tensor is what config.json implies. Raises ModelFormatError."""
    if shape != implied:
        raise ModelFormatError(f"{name} has shape {list(shape)}, config.json implies {list(implied)}")
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise ModelFormatError(f"the weights' {name} has dtype {dtype}; expected bf16, fp16 or fp32")


def lacking(name: str) -> ModelFormatError:
    """For a tensor that no file has."""
    return ModelFormatError(f"the weights lack {name}, which config.json implies")


def unreadable(name: str, error: Exception) -> ModelFormatError:
    """For a tensor whose file is damaged."""
    return ModelFormatError(f"the weights' {name} cannot be read ({error}); fetch them again")


@contextlib.contextmanager
def open_weights(paths: tuple[Path, ...], *, dtype: torch.dtype, device: torch.device) -> Iterator[Weights]:
    """Map all files. Raises ModelFormatError for a missing, truncated or corrupt one."""
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
                files.update(dict.fromkeys(file.keys(), file))
            except (SafetensorError, OSError) as error:
                raise ModelFormatError(
                    f"{path} is no readable safetensors file ({error}); fetch it again"
                ) from error
        yield Weights(files, dtype=dtype, device=device)
