"""NVIDIA's management library as the worker uses it: GPUs and MIG instances, found by their UUIDs."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A GPU, or a MIG instance of one."""

    uuid: str
    handle: Any
    gpu: Any  # the whole GPU: `handle` itself where it is not divided

    @property
    def is_instance(self) -> bool:
        return self.handle is not self.gpu


def load_nvml() -> Any:
    """The library's binding; None where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def parts(nvml: Any) -> list[Part]:
    """All GPUs, MIG instances instead of those that are divided. Between nvmlInit and nvmlShutdown."""
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [
        Part(_text(nvml.nvmlDeviceGetUUID(handle)), handle, gpu)
        for gpu in gpus
        for handle in _handles(nvml, gpu)
    ]


def find(nvml: Any, uuid: str) -> Part | None:
    """The part with this UUID, however its kind is written before it (GPU-, MIG-, nothing)."""
    return next((part for part in parts(nvml) if _bare(part.uuid) == _bare(uuid)), None)


def _handles(nvml: Any, gpu: Any) -> list[Any]:
    """Of the MIG instances of a GPU, or of the GPU itself where it is not divided."""
    try:
        divided = nvml.nvmlDeviceGetMigMode(gpu)[0]
    except nvml.NVMLError:  # a GPU without MIG
        divided = 0
    if not divided:
        return [gpu]
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index))
        except nvml.NVMLError:  # no instance at this place
            continue
    return found


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
