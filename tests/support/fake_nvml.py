"""NVIDIA's driver library as the real binding calls it: what pynvml looks up by name is answered from here.

Only the C functions are ours. Names, signatures, structures and exceptions are the binding's own, so what
production asks for by a wrong name, or fills in wrongly, fails as it would before a driver.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

MIB = 1 << 20


@dataclass
class Device:
    """A GPU, or an instance of one."""

    uuid: str
    instances: list[Device] = field(default_factory=list)
    instance_id: int = 0
    gpm: bool = True
    counters: dict[int, float] = field(default_factory=dict)  # metric -> value; others are not supported
    memory: tuple[int, int] = (143_771 * MIB, 20_000 * MIB)  # total, used
    kernel_percent: int = 100
    multiprocessors: int = 132
    parent: Device | None = None


H200 = dict(clock_memory=3201, clock_sm=1980, bus_bits=6144, capability=(9, 0))


class FakeDriver:
    """Some devices; `errors` makes a C function fail with a code, `hold` makes one hang until set."""

    def __init__(self, *devices: Device) -> None:
        self.devices = list(devices)
        self.errors: dict[str, int] = {}
        self.hold: dict[str, threading.Event] = {}
        self.calls: list[str] = []
        self.samples = 0  # alive
        self.opened = 0
        self._by_number: dict[int, Device] = {}
        for device in devices:
            self._number(device)
            for each in device.instances:
                each.parent = device
                self._number(each)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Puts itself below the binding, and returns that."""
        monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", lambda: None)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", self._look_up)
        return pynvml

    def _number(self, device: Device) -> None:
        self._by_number[0x1000 + 16 * len(self._by_number)] = device

    def _look_up(self, name: str) -> Callable[..., int]:
        answer: Callable[..., int | None] | None = getattr(self, f"_{name}", None)
        if answer is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.hold:
                assert self.hold[name].wait(30)
            if name in self.errors:
                return self.errors[name]
            return answer(*arguments) or pynvml.NVML_SUCCESS

        return call

    def _of(self, handle: Any) -> Device:
        return self._by_number[ctypes.cast(handle, ctypes.c_void_p).value or 0]

    def _set_handle(self, out: Any, device: Device) -> None:
        number = next(number for number, each in self._by_number.items() if each is device)
        ctypes.c_void_p.from_buffer(out._obj).value = number

    def _nvmlInitWithFlags(self, flags: Any) -> None:
        self.opened += 1

    def _nvmlShutdown(self) -> None:
        self.opened -= 1

    def _nvmlDeviceGetCount_v2(self, out: Any) -> None:
        out._obj.value = len(self.devices)

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, out: Any) -> None:
        self._set_handle(out, self.devices[index.value])

    def _nvmlDeviceGetUUID(self, handle: Any, buffer: Any, size: Any) -> None:
        buffer.value = self._of(handle).uuid.encode()

    def _nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> None:
        current._obj.value = int(bool(self._of(handle).instances))

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, out: Any) -> None:
        out._obj.value = 7

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, out: Any) -> int | None:
        instances = self._of(handle).instances
        if index.value >= len(instances):
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        self._set_handle(out, instances[index.value])
        return None

    def _nvmlDeviceGetGpuInstanceId(self, handle: Any, out: Any) -> None:
        out._obj.value = self._of(handle).instance_id

    def _nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: Any, out: Any) -> None:
        out._obj.value = H200["clock_memory" if kind.value == pynvml.NVML_CLOCK_MEM else "clock_sm"]

    def _nvmlDeviceGetMemoryBusWidth(self, handle: Any, out: Any) -> None:
        out._obj.value = H200["bus_bits"]

    def _nvmlDeviceGetNumGpuCores(self, handle: Any, out: Any) -> None:
        out._obj.value = 128 * self._of(handle).multiprocessors

    def _nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> None:
        major._obj.value, minor._obj.value = H200["capability"]

    def _nvmlDeviceGetAttributes_v2(self, handle: Any, out: Any) -> int | None:
        device = self._of(handle)
        if device.parent is None:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        out._obj.multiprocessorCount = device.multiprocessors
        out._obj.memorySizeMB = device.memory[0] // MIB
        return None

    def _nvmlDeviceGetMemoryInfo(self, handle: Any, out: Any) -> None:
        total, used = self._of(handle).memory
        out._obj.total, out._obj.used, out._obj.free = total, used, total - used

    def _nvmlDeviceGetUtilizationRates(self, handle: Any, out: Any) -> int | None:
        if self._of(handle).parent is not None:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        out._obj.gpu = self._of(handle).kernel_percent
        return None

    def _nvmlGpmQueryDeviceSupport(self, handle: Any, out: Any) -> int | None:
        if out._obj.version != pynvml.NVML_GPM_SUPPORT_VERSION:
            return int(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        out._obj.isSupportedDevice = int(self._of(handle).gpm)
        return None

    def _nvmlGpmSampleAlloc(self, out: Any) -> None:
        self.samples += 1
        ctypes.c_void_p.from_buffer(out._obj).value = 0x9000 + 16 * self.samples

    def _nvmlGpmSampleFree(self, sample: Any) -> None:
        self.samples -= 1

    def _nvmlGpmSampleGet(self, handle: Any, sample: Any) -> int | None:
        device = self._of(handle)
        if device.instances or device.parent is not None:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self._sampled(device)

    def _nvmlGpmMigSampleGet(self, handle: Any, instance: Any, sample: Any) -> int | None:
        number = instance if isinstance(instance, int) else instance.value
        of_id = {each.instance_id: each for each in self._of(handle).instances}
        return self._sampled(of_id[number]) if number in of_id else int(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def _sampled(self, device: Device) -> None:
        self._counters = device.counters

    def _nvmlGpmMetricsGet(self, asked: Any) -> int | None:
        wanted = asked._obj
        if wanted.version != pynvml.NVML_GPM_METRICS_GET_VERSION:
            return int(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        if not (wanted.sample1 and wanted.sample2):
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        for metric in wanted.metrics[: wanted.numMetrics]:
            found = self._counters.get(metric.metricId)
            metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED if found is None else pynvml.NVML_SUCCESS
            metric.value = found if found is not None else 123.0
        return None


def counters(**percent: float) -> dict[int, float]:
    """By the last part of the metrics' names: SM_UTIL=50.0."""
    return {getattr(pynvml, f"NVML_GPM_METRIC_{name}"): value for name, value in percent.items()}
