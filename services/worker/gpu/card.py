"""What a card can do at most, by its own clocks and widths: what utilisation is a part of.

    bytes a second = 2 * memory clock * bus width / 8
    FLOPs a second = multiprocessors * FLOPs a cycle of one * clock

Both are a little above what any program reaches: bench/gpu.sh measures that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from services.worker.gpu.nvml import Part

_EIGHTH = 8  # a MIG instance has eighths of the memory, and so many of its bandwidth
_TENSOR_FLOPS = {  # of one multiprocessor in a cycle: dense bf16 products added up in fp32
    (8, 0): 2048,
    (8, 6): 512,
    (8, 9): 1024,
    (9, 0): 4096,
    (10, 0): 8192,
    (10, 3): 8192,
    (12, 0): 512,
}
_CORES = {(8, 0): 64}  # of a multiprocessor; others have 128


class Card(NamedTuple):
    """Ceilings; None where the driver or this table does not know."""

    bytes_per_s: float | None  # device memory
    flops_per_s: float | None  # bf16 products


def card_of(nvml: Any, part: Part) -> Card:
    """The ceilings of a GPU or of an instance's share of it."""
    return Card(_bytes_per_s(nvml, part), _flops_per_s(nvml, part))


def asked(nvml: Any, name: str, *arguments: Any) -> Any:
    """What the driver says; None where this one, this binding or this card does not have it."""
    function: Callable[..., Any] | None = getattr(nvml, name, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None


def _bytes_per_s(nvml: Any, part: Part) -> float | None:
    clock_mhz = asked(nvml, "nvmlDeviceGetMaxClockInfo", part.gpu, nvml.NVML_CLOCK_MEM)
    width_bits = asked(nvml, "nvmlDeviceGetMemoryBusWidth", part.gpu)
    share = _memory_share(nvml, part)
    return None if None in (clock_mhz, width_bits, share) else 2e6 * clock_mhz * width_bits / 8 * share


def _memory_share(nvml: Any, part: Part) -> Any:
    if not part.is_instance:
        return 1.0
    attributes = asked(nvml, "nvmlDeviceGetAttributes_v2", part.handle)
    whole = asked(nvml, "nvmlDeviceGetMemoryInfo", part.gpu)
    if attributes is None or whole is None:
        return None
    return max(1, round(_EIGHTH * (attributes.memorySizeMB << 20) / whole.total)) / _EIGHTH


def _flops_per_s(nvml: Any, part: Part) -> float | None:
    capability = asked(nvml, "nvmlDeviceGetCudaComputeCapability", part.gpu)
    clock_mhz = asked(nvml, "nvmlDeviceGetMaxClockInfo", part.gpu, nvml.NVML_CLOCK_SM)
    count = _multiprocessors(nvml, part, capability)
    if capability not in _TENSOR_FLOPS or None in (clock_mhz, count):
        return None
    return float(count * _TENSOR_FLOPS[capability] * clock_mhz) * 1e6


def _multiprocessors(nvml: Any, part: Part, capability: Any) -> Any:
    if part.is_instance:
        attributes = asked(nvml, "nvmlDeviceGetAttributes_v2", part.handle)
        return None if attributes is None else attributes.multiprocessorCount
    cores = asked(nvml, "nvmlDeviceGetNumGpuCores", part.gpu)
    return None if cores is None else cores // _CORES.get(capability, 128)
