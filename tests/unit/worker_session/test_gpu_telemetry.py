"""A worker tells what its own GPU does, says nothing where nothing is known, and no driver brings it down."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.common.lifecycle import Tasks
from services.worker.engine.client import EngineClient
from services.worker.engine.report import Work
from services.worker.engine.settings import EngineSettings
from services.worker.gpu.collector import GpuCollector, Said
from services.worker.gpu.lease import VISIBLE
from services.worker.gpu.model_size import ModelSize
from services.worker.gpu.probe import NoTelemetry, Probe
from services.worker.gpu.telemetry import Telemetry
from services.worker.gpu.utilisation import Meter
from services.worker.metrics import WorkerMetrics
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings
from tests.support.fake_nvml import MIB, Device, FakeDriver, counters
from tests.support.gated_engine import StepGate, start_gated
from tests.support.waiting import eventually
from tests.support.worker_service import write_model, write_secret

UUID = "GPU-8d3b1c1e-0000-0000-0000-000000000001"
BUSY = counters(
    GRAPHICS_UTIL=99.0, SM_UTIL=87.5, SM_OCCUPANCY=40.0, ANY_TENSOR_UTIL=33.0, DRAM_BW_UTIL=75.0,
    PCIE_RX_PER_SEC=8.0, PCIE_TX_PER_SEC=2.0,
)  # fmt: skip
CONFIG = {  # Llama-3.1-8B
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip


def probe(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, uuid: str = UUID) -> Probe:
    nvml = driver.install(monkeypatch)
    return Probe(uuid, lambda: nvml)


def test_the_second_reading_says_what_the_hardware_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe(monkeypatch, FakeDriver(Device("GPU-other"), Device(UUID, counters=BUSY)))
    assert found.read().activity == {}
    reading = found.read()
    assert reading.uuid == UUID
    assert reading.activity == {"engine": 0.99, "sm": 0.875, "tensor": pytest.approx(0.33), "dram": 0.75}
    assert reading.occupancy == 0.4
    assert reading.pcie_bytes_per_s == {"host_to_device": 8 * MIB, "device_to_host": 2 * MIB}
    assert reading.card.bytes_per_s == pytest.approx(4.917e12, rel=1e-3)
    assert reading.card.flops_per_s == pytest.approx(132 * 4096 * 1.98e9)


@pytest.mark.parametrize("prefix", ["", "GPU-"])
def test_the_gpu_is_found_as_cuda_writes_its_uuid(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    uuid = prefix + UUID.removeprefix("GPU-").upper()
    assert probe(monkeypatch, FakeDriver(Device("GPU-1"), Device(UUID)), uuid).read().uuid == UUID


def test_another_gpus_numbers_are_never_told_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(Device("GPU-other", counters=BUSY))
    with pytest.raises(NoTelemetry, match=UUID):
        probe(monkeypatch, driver).read()
    assert driver.opened == 0


def test_a_mig_instance_is_read_by_itself_with_its_share_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Device("MIG-half", instance_id=3, counters=BUSY, memory=(71_680 * MIB, MIB), multiprocessors=60)
    small = Device("MIG-small", instance_id=9, counters=counters(SM_UTIL=1.0), memory=(16_384 * MIB, MIB))
    found = probe(monkeypatch, FakeDriver(Device("GPU-whole", instances=[small, half])), "MIG-half")
    found.read()
    reading = found.read()
    assert (reading.uuid, reading.activity["sm"], reading.memory_total) == ("MIG-half", 0.875, 71_680 * MIB)
    assert reading.kernel_time is None  # the driver tells that of whole cards only
    assert reading.card.bytes_per_s == pytest.approx(4.917e12 / 2, rel=1e-3)
    assert reading.card.flops_per_s == pytest.approx(60 * 4096 * 1.98e9)


def test_a_counter_that_is_not_available_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {**counters(SM_UTIL=50.0), **counters(DRAM_BW_UTIL=float("nan"))}
    found = probe(monkeypatch, FakeDriver(Device(UUID, counters=few)))
    found.read()
    reading = found.read()
    assert reading.activity == {"sm": 0.5}
    assert reading.occupancy is None
    assert reading.pcie_bytes_per_s == {}


@pytest.mark.parametrize("how", ["card", "driver", "binding"])
def test_without_gpm_utilisation_is_not_passed_off_as_occupancy(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    driver = FakeDriver(Device(UUID, counters=BUSY, gpm=how != "card", kernel_percent=100))
    if how == "driver":
        driver.errors["nvmlGpmQueryDeviceSupport"] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    found = probe(monkeypatch, driver)
    if how == "binding":
        monkeypatch.delattr(pynvml, "nvmlGpmQueryDeviceSupport")
    found.read()
    reading = found.read()
    assert (reading.activity, reading.occupancy, reading.kernel_time) == ({}, None, 1.0)


def test_no_library_and_no_driver_are_told_apart_from_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoTelemetry, match="nvidia-ml-py"):
        Probe(UUID, lambda: None).read()
    driver = FakeDriver()
    for code in (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND):
        driver.errors["nvmlInitWithFlags"] = code
        with pytest.raises(NoTelemetry):
            probe(monkeypatch, driver).read()


def test_after_a_failure_the_driver_is_opened_anew_and_nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(Device(UUID, counters=BUSY))
    found = probe(monkeypatch, driver)
    for _ in range(3):
        found.read()
        driver.errors["nvmlGpmSampleGet"] = pynvml.NVML_ERROR_GPU_IS_LOST
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            found.read()
        assert (driver.opened, driver.samples) == (0, 0)
        driver.errors.clear()
    found.read()
    assert found.read().activity["sm"] == 0.875
    found.close()
    assert (driver.opened, driver.samples) == (0, 0)


def test_steady_reading_allocates_two_samples_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(Device(UUID, counters=BUSY))
    found = probe(monkeypatch, driver)
    for _ in range(10):
        found.read()
    assert (driver.samples, driver.calls.count("nvmlGpmSampleAlloc")) == (2, 2)


class Watched:
    """A telemetry task over a fake driver."""

    def __init__(self, driver: FakeDriver, found: Probe, patience_s: float = 5.0) -> None:
        self.driver = driver
        self.registry = CollectorRegistry(auto_describe=True)
        self.metrics = WorkerMetrics(self.registry)
        self.tasks = Tasks()
        telemetry = Telemetry(
            found, self.metrics, CONFIG, "bfloat16", interval_s=0.005, patience_s=patience_s
        )
        self.task = self.tasks.spawn(telemetry.run(), "gpu-telemetry")

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"headrace_worker_{name}", labels)

    def failures(self, kind: str) -> float:
        return self.value("gpu_telemetry_failures_total", kind=kind) or 0.0

    @property
    def told(self) -> str:
        return generate_latest(self.registry).decode()

    @property
    def activity(self) -> float | None:
        return self.value("gpu_activity_ratio", gpu=UUID, kind="sm", source="nvml_gpm")


@asynccontextmanager
async def watched(driver: FakeDriver, found: Probe, patience_s: float = 5.0) -> AsyncIterator[Watched]:
    watch = Watched(driver, found, patience_s)
    try:
        yield watch
    finally:
        await watch.tasks.cancel()


async def test_metrics_name_gpu_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(Device(UUID, counters=BUSY))
    async with watched(driver, probe(monkeypatch, driver)) as watch:
        await eventually(lambda: watch.activity == 0.875, "activity")
        assert watch.value("gpu_sm_occupancy_ratio", gpu=UUID, source="nvml_gpm") == 0.4
        assert watch.value("gpu_kernel_time_ratio", gpu=UUID, source="nvml") == 1.0
        assert watch.value("gpu_memory_bytes", gpu=UUID, source="nvml", state="used") == 20_000 * MIB
        assert "headrace_worker_host_to_device_bytes" not in watch.told  # an engine that counts no copies


async def test_utilisation_comes_from_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(Device(UUID, counters=BUSY))
    async with watched(driver, probe(monkeypatch, driver)) as watch:
        watch.metrics.work = Work()
        await eventually(lambda: watch.activity == 0.875, "a second reading")
        assert "mbu_ratio" not in watch.told  # there was no step

        def busy() -> bool:
            assert watch.metrics.work is not None
            watch.metrics.work = Work(*(old + 1e-6 for old in watch.metrics.work))
            return watch.value("mbu_ratio", gpu=UUID, source="steps", per="busy") is not None

        await eventually(busy, "utilisation")
        assert watch.value("mfu_ratio", gpu=UUID, source="steps", per="wall") is not None
        assert (watch.value("host_to_device_bytes_total", gpu=UUID) or 0.0) > 0.0


async def test_a_driver_that_fails_is_counted_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(Device(UUID, counters=BUSY))
    driver.errors["nvmlGpmMetricsGet"] = pynvml.NVML_ERROR_UNKNOWN
    async with watched(driver, probe(monkeypatch, driver)) as watch:
        await eventually(lambda: watch.failures("error") >= 3, "failures")
        driver.errors.clear()
        await eventually(lambda: watch.activity == 0.875, "activity after the failures")


async def test_a_driver_that_hangs_holds_up_one_thread_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, release = FakeDriver(Device(UUID, counters=BUSY)), threading.Event()
    driver.hold["nvmlDeviceGetMemoryInfo"] = release
    async with watched(driver, probe(monkeypatch, driver), patience_s=0.02) as watch:
        await eventually(lambda: watch.failures("hung") >= 5, "time-outs")
        assert sum(thread.name == "gpu-telemetry" for thread in threading.enumerate()) == 1
        assert "headrace_worker_gpu_activity" not in watch.told
        release.set()
        driver.hold.clear()
        await eventually(lambda: watch.activity == 0.875, "activity after the hang")


async def test_where_there_is_no_gpu_the_task_ends_and_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = FakeDriver()
    async with watched(driver, probe(monkeypatch, driver)) as watch:
        await asyncio.wait_for(watch.task, 10)
        assert "gpu_activity" not in watch.told
        assert "mbu" not in watch.told
        assert "headrace_worker_gpu_telemetry_failures_total{" not in watch.told


def test_what_is_no_longer_fresh_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    collector = GpuCollector(15.0, lambda: now[0])
    driver = FakeDriver(Device(UUID, counters=BUSY))
    collector.say(Said(probe(monkeypatch, driver).read(), None, None))
    assert list(collector.collect())
    now[0] = 15.1
    assert not list(collector.collect())


def test_decoding_at_the_bandwidth_of_the_card_is_an_mbu_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(Device(UUID))
    card, size = probe(monkeypatch, driver).read().card, ModelSize.of(CONFIG)
    assert card.bytes_per_s is not None
    assert size.kv_values * 2 == 131_072  # bytes of KV a token
    step_bytes = 2 * (size.layer_weights + size.head_weights) + 64 * 1024 * 131_072
    step_s = step_bytes / card.bytes_per_s
    after = Work(10, 10 * step_s, 640, 640, 640 * 1024, 640 * 1024)
    found = Meter(size, "bfloat16", card).between(Work(), after, 20 * step_s)
    assert found.mbu_busy == pytest.approx(1.0)
    assert found.mbu_wall == pytest.approx(0.5)
    assert found.mfu_busy is not None
    assert 0.0 < found.mfu_busy < 0.5
    assert Meter(size, "float32", card).between(Work(), after, 1.0).mfu_busy is None
    assert Meter(size, "bfloat16", card).between(after, after, 1.0).mbu_busy is None


def test_torch_is_not_loaded_by_telemetry() -> None:
    script = "import services.worker.gpu.telemetry, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_fake_has_no_function_that_the_real_driver_has_not() -> None:
    source = Path(pynvml.__file__).read_text()
    names = [name.removeprefix("_") for name in vars(FakeDriver) if name.startswith("_nvml")]
    assert len(names) > 15
    assert [name for name in names if f'"{name}"' not in source] == []


@asynccontextmanager
async def worker_of(
    directory: Path, device_uuid: str | None, device: str = "cpu"
) -> AsyncIterator[CollectorRegistry]:
    """A worker service over an engine that says it computes there; what it exposes."""
    gate, registry, tasks = StepGate(), CollectorRegistry(auto_describe=True), Tasks()

    async def start(settings: EngineSettings) -> EngineClient:
        engine = await start_gated(settings, gate=gate)
        engine.description = replace(engine.description, device_uuid=device_uuid, dtype="bfloat16")
        return engine

    settings = WorkerSettings(
        model=str(write_model(directory / "model")),
        routers=("127.0.0.1:1",),
        mesh_secret_file=write_secret(directory),
        lease_dir=directory / "leases",
        **{"device": device},
    )
    service = WorkerService(settings, registry, tasks, start_engine=start, leave=lambda: None)
    await service.start()
    try:
        yield registry
    finally:
        gate.open()
        await tasks.cancel()
        await service.stop()


async def test_a_worker_watches_the_gpu_that_its_engine_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDriver(Device("GPU-other"), Device(UUID, counters=BUSY)).install(monkeypatch)
    labels = {"gpu": UUID, "source": "nvml", "state": "used"}
    async with worker_of(tmp_path, UUID.removeprefix("GPU-")) as registry:
        await eventually(
            lambda: registry.get_sample_value("headrace_worker_gpu_memory_bytes", labels), "a reading"
        )
        assert "GPU-other" not in generate_latest(registry).decode()


async def test_a_worker_that_claimed_a_mig_instance_watches_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever UUID CUDA tells of it."""
    monkeypatch.setenv(VISIBLE, "")
    monkeypatch.delenv(VISIBLE)
    instance = Device("MIG-1", instance_id=4, counters=BUSY, memory=(71_680 * MIB, 5 * MIB))
    FakeDriver(Device(UUID, instances=[instance])).install(monkeypatch)
    labels = {"gpu": "MIG-1", "source": "nvml", "state": "used"}
    async with worker_of(tmp_path, UUID, device="auto") as registry:
        await eventually(
            lambda: registry.get_sample_value("headrace_worker_gpu_memory_bytes", labels) == 5 * MIB,
            "a reading of the instance",
        )


async def test_a_worker_on_a_cpu_asks_no_driver_and_says_nothing_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(Device(UUID, counters=BUSY))
    driver.install(monkeypatch)
    async with worker_of(tmp_path, None) as registry:
        told = generate_latest(registry).decode()
    assert "headrace_worker_step_seconds" in told
    assert [line for line in told.splitlines() if "gpu" in line and not line.startswith("#")] == []
    assert driver.calls == []
