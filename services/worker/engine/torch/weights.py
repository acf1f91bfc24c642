"""Weights out of safetensors files: every tensor is checked against the shape that config.json implies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from services.worker.engine.errors import ModelFormatError


class Weights:
    """Named tensors over one or more files. The files are mapped: what is not asked for is not read."""

    def __init__(self, files: dict[str, Any], *, dtype: torch.dtype, device: torch.device) -> None:
        self._files = files  # tensor name -> open file
        self._dtype = dtype
        self._device = device

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor in the engine's dtype, on its device. Raises ModelFormatError."""
        if name not in self._files:
            raise ModelFormatError(f"the weights lack {name}, which config.json implies")
        try:
            tensor: torch.Tensor = self._files[name].get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise ModelFormatError(
                f"the weights' {name} cannot be read ({error}); fetch them again"
            ) from error
        if tuple(tensor.shape) != shape:
            raise ModelFormatError(
                f"{name} has shape {list(tensor.shape)}, config.json implies {list(shape)}"
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ModelFormatError(
                f"the weights' {name} has dtype {tensor.dtype}; expected bf16, fp16 or fp32"
            )
        return tensor.to(device=self._device, dtype=self._dtype)


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
