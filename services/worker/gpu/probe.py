"""Reads one GPU through NVML. Synchronous, and every call may hang with the driver: see telemetry.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from services.worker.gpu.card import Card, asked, card_of
from services.worker.gpu.gpm import Gpm, supports_gpm
from services.worker.gpu.nvml import Part, find, load_nvml


class NoTelemetry(Exception):
    """There is nothing to read here, and there will not be: no library, no driver, no such GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Of one moment, and of the time since the one before. What the card does not say is None or absent."""

    uuid: str
    card: Card
    activity: dict[str, float] = field(default_factory=dict)  # part of 1: engine, sm, tensor, dram
    occupancy: float | None = None  # warps on the SMs, part of the most there may be
    pcie_bytes_per_s: dict[str, float] = field(default_factory=dict)  # host_to_device, device_to_host
    kernel_time: float | None = None  # part of the time in which any kernel ran, however small
    memory_used: int | None = None  # bytes
    memory_total: int | None = None


class Probe:
    """The GPU with one UUID. For one thread at a time."""

    def __init__(self, uuid: str, nvml: Callable[[], Any] = load_nvml) -> None:
        self._uuid = uuid
        self._load = nvml
        self._open: _Open | None = None

    def read(self) -> Reading:
        """The next reading; opens the driver where it is not. Raises NoTelemetry, or NVMLError: then the
        next call opens it anew."""
        if self._open is None:
            self._open = _Open(self._load(), self._uuid)
        try:
            return self._open.read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the driver, whatever state it is in."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()


class _Open:
    """The driver, initialised for us."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        if nvml is None:
            raise NoTelemetry("nvidia-ml-py is not installed")
        try:
            nvml.nvmlInit()
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
            raise NoTelemetry(str(error)) from None
        self._nvml = nvml
        self._gpm: Gpm | None = None
        try:
            self._part = _found(nvml, uuid)
            self._card = card_of(nvml, self._part)
            if supports_gpm(nvml, self._part):
                self._gpm = Gpm(nvml, self._part)
        except BaseException:
            self.close()
            raise

    def read(self) -> Reading:
        nvml, part = self._nvml, self._part
        counted = {} if self._gpm is None else self._gpm.read()
        rates = None if part.is_instance else asked(nvml, "nvmlDeviceGetUtilizationRates", part.handle)
        memory = asked(nvml, "nvmlDeviceGetMemoryInfo", part.handle)
        return Reading(
            uuid=part.uuid,
            card=self._card,
            activity={kind: counted[kind] for kind in ("engine", "sm", "tensor", "dram") if kind in counted},
            occupancy=counted.get("occupancy"),
            pcie_bytes_per_s={
                way: counted[way] for way in ("host_to_device", "device_to_host") if way in counted
            },
            kernel_time=None if rates is None else rates.gpu / 100,
            memory_used=None if memory is None else memory.used,
            memory_total=None if memory is None else memory.total,
        )

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            if self._gpm is not None:
                self._gpm.close()
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def _found(nvml: Any, uuid: str) -> Part:
    part = find(nvml, uuid)
    if part is None:
        raise NoTelemetry(f"NVML shows no GPU with the UUID {uuid}")
    return part
