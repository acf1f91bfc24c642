"""The GPU's part of a worker's metrics: what was last read, or nothing. Zero is never said for unknown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from services.worker.gpu.probe import Reading
from services.worker.gpu.utilisation import Utilisation

INTERVAL_S = 5.0  # between readings
FRESH_S = 3 * INTERVAL_S  # how long one counts
GPM, NVML, STEPS = "nvml_gpm", "nvml", "steps"  # sources: hardware counters, the driver, the engine's steps


class Said(NamedTuple):
    """What is known of one moment."""

    reading: Reading
    utilisation: Utilisation | None  # None until there are two totals of work
    host_to_device_bytes: float | None  # None of an engine that does not count them


class GpuCollector(Collector):
    """Exposes what was said last, for `fresh_s` seconds."""

    def __init__(self, fresh_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fresh_s = fresh_s
        self._clock = clock
        self._last: tuple[Said, float] | None = None

    def say(self, said: Said) -> None:
        """A new reading."""
        self._last = said, self._clock()

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """All families; those without samples are left out."""
        last = self._last
        if last is not None and self._clock() - last[1] <= self._fresh_s:
            yield from (family for family in _families(last[0]) if family.samples)


def _families(said: Said) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    reading, gpu = said.reading, said.reading.uuid
    activity = _gauge("gpu_activity_ratio", "Part of the time and of the card's units that worked", "kind")
    for kind, value in reading.activity.items():
        activity.add_metric([gpu, GPM, kind], value)
    yield activity
    pcie = _gauge("gpu_pcie_bytes_per_second", "Traffic of the whole card with its host", "way")
    for way, value in reading.pcie_bytes_per_s.items():
        pcie.add_metric([gpu, GPM, way], value)
    yield pcie
    yield _memory(reading)
    for name, text, source, found in (
        ("gpu_sm_occupancy_ratio", "Warps on the SMs, part of the most there may be", GPM, reading.occupancy),
        (
            "gpu_kernel_time_ratio",
            "Part of the time in which any kernel ran, however small: no sign of how full the card was",
            NVML,
            reading.kernel_time,
        ),
        ("gpu_peak_bytes_per_second", "Memory by clock and bus width", NVML, reading.card.bytes_per_s),
        ("gpu_peak_flops_per_second", "bf16 by clock and multiprocessors", NVML, reading.card.flops_per_s),
    ):
        yield _single(name, text, gpu, source, found)
    yield from _of_steps(said)


def _memory(reading: Reading) -> GaugeMetricFamily:
    family = _gauge("gpu_memory_bytes", "Device memory, by state (used, free), of all its processes", "state")
    if reading.memory_used is not None and reading.memory_total is not None:
        family.add_metric([reading.uuid, NVML, "used"], reading.memory_used)
        family.add_metric([reading.uuid, NVML, "free"], reading.memory_total - reading.memory_used)
    return family


def _of_steps(said: Said) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    gpu, found = said.reading.uuid, said.utilisation
    if found is not None:
        yield _parts("mbu_ratio", "Bytes that had to be read", gpu, found.mbu_busy, found.mbu_wall)
        yield _parts("mfu_ratio", "FLOPs that had to be done", gpu, found.mfu_busy, found.mfu_wall)
    if said.host_to_device_bytes is not None:
        copied = CounterMetricFamily(
            "headrace_worker_host_to_device_bytes",
            "Copied to the device by the engine, weights left out",
            labels=["gpu"],
        )
        copied.add_metric([gpu], said.host_to_device_bytes)
        yield copied


def _parts(name: str, text: str, gpu: str, busy: float | None, wall: float | None) -> GaugeMetricFamily:
    family = _gauge(name, f"{text}, part of the peak: while steps ran (busy), by the clock (wall)", "per")
    for per, value in (("busy", busy), ("wall", wall)):
        if value is not None:
            family.add_metric([gpu, STEPS, per], value)
    return family


def _gauge(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headrace_worker_{name}", text, labels=["gpu", "source", label])


def _single(name: str, text: str, gpu: str, source: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"headrace_worker_{name}", text, labels=["gpu", "source"])
    if value is not None:
        family.add_metric([gpu, source], value)
    return family
