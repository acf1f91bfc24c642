"""What the hardware counters of a card say between two samples (NVML GPM: Hopper and later).

Unlike the driver's "utilisation", which is the part of the time in which any kernel ran, these say how much
of the card worked: SMs, their warps, tensor cores, memory.
"""

from __future__ import annotations

import math
from typing import Any

from services.worker.gpu.nvml import Part

_PERCENT = {
    "engine": "NVML_GPM_METRIC_GRAPHICS_UTIL",
    "sm": "NVML_GPM_METRIC_SM_UTIL",
    "occupancy": "NVML_GPM_METRIC_SM_OCCUPANCY",
    "tensor": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "dram": "NVML_GPM_METRIC_DRAM_BW_UTIL",
}
_MIB_PER_S = {
    "host_to_device": "NVML_GPM_METRIC_PCIE_RX_PER_SEC",
    "device_to_host": "NVML_GPM_METRIC_PCIE_TX_PER_SEC",
}
_UNITS = {**dict.fromkeys(_PERCENT, 0.01), **dict.fromkeys(_MIB_PER_S, float(1 << 20))}


def supports_gpm(nvml: Any, part: Part) -> bool:
    """Whether card, driver and binding have these counters. Raises NVMLError for what is no such answer."""
    if not hasattr(nvml, "nvmlGpmQueryDeviceSupport"):
        return False
    try:
        return bool(nvml.nvmlGpmQueryDeviceSupport(part.gpu).isSupportedDevice)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return False


class Gpm:
    """The counters of one GPU or MIG instance. Holds two samples of the driver's until `close`."""

    def __init__(self, nvml: Any, part: Part) -> None:
        self._nvml = nvml
        self._part = part
        self._instance = nvml.nvmlDeviceGetGpuInstanceId(part.handle) if part.is_instance else None
        self._metrics = {
            name: getattr(nvml, constant)
            for name, constant in (_PERCENT | _MIB_PER_S).items()
            if hasattr(nvml, constant)
        }
        self._earlier: Any = None
        self._spare: list[Any] = []

    def read(self) -> dict[str, float]:
        """Averages since the last call, nothing at the first: parts of 1, and bytes a second.

        What the card says is not available is not in it. Raises NVMLError.
        """
        later = self._sample()
        earlier, self._earlier = self._earlier, later
        if earlier is None:
            return {}
        self._spare.append(earlier)
        return self._between(earlier, later)

    def close(self) -> None:
        """Gives the samples back. Raises NVMLError."""
        samples = [*self._spare, *([] if self._earlier is None else [self._earlier])]
        self._earlier, self._spare = None, []
        for sample in samples:
            self._nvml.nvmlGpmSampleFree(sample)

    def _sample(self) -> Any:
        sample = self._spare.pop() if self._spare else self._nvml.nvmlGpmSampleAlloc()
        try:
            if self._instance is None:
                self._nvml.nvmlGpmSampleGet(self._part.gpu, sample)
            else:
                self._nvml.nvmlGpmMigSampleGet(self._part.gpu, self._instance, sample)
        except BaseException:
            self._spare.append(sample)
            raise
        return sample

    def _between(self, earlier: Any, later: Any) -> dict[str, float]:
        asked = self._nvml.c_nvmlGpmMetricsGet_t()
        asked.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(self._metrics)
        asked.sample1, asked.sample2 = earlier, later
        for place, metric in enumerate(self._metrics.values()):
            asked.metrics[place].metricId = metric
        self._nvml.nvmlGpmMetricsGet(asked)
        said = zip(self._metrics, asked.metrics, strict=False)
        return {
            name: each.value * _UNITS[name]
            for name, each in said
            if each.nvmlReturn == self._nvml.NVML_SUCCESS and math.isfinite(each.value)
        }
