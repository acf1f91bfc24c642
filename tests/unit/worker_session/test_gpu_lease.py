"""GPU leases: each worker process has one GPU, and a killed one frees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.lifecycle import StartError
from services.worker.gpu.lease import VISIBLE, claim_gpu, device_uuids

ROOT = Path(__file__).parent.parent.parent.parent
FAKE_NVML = """
import json, os

class NVMLError(Exception):
    pass

_gpus = json.loads(os.environ["FAKE_GPUS"])

def nvmlInit():
    if _gpus is None:
        raise NVMLError("driver not loaded")

def nvmlShutdown():
    pass

def nvmlDeviceGetCount():
    return len(_gpus)

def nvmlDeviceGetHandleByIndex(index):
    return _gpus[index]

def nvmlDeviceGetUUID(handle):
    return handle if isinstance(handle, str) else handle["uuid"].encode()

def nvmlDeviceGetMigMode(handle):
    if isinstance(handle, str):
        raise NVMLError("not supported")
    return [int(bool(handle["mig"])), 0]

def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7

def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    if index >= len(handle["mig"]):
        raise NVMLError("not found")
    return handle["mig"][index]
"""
CLAIM = """
import os, sys
from pathlib import Path
from services.common.lifecycle import StartError
from services.worker.gpu.lease import claim_gpu
try:
    lease = claim_gpu(Path(sys.argv[1]), os.environ)
    print(os.environ.get("CUDA_VISIBLE_DEVICES", "none"), flush=True)
except StartError as error:
    print(f"refused: {error}", flush=True)
assert "torch" not in sys.modules
sys.stdin.read()
"""


class Claimers:
    """Real processes that claim, and hold until they end."""

    def __init__(self, directory: Path, gpus: Any) -> None:
        (directory / "pynvml.py").write_text(FAKE_NVML)
        self._leases = directory / "leases"
        clean = {key: value for key, value in os.environ.items() if key != VISIBLE}
        self._environment = {**clean, "PYTHONPATH": f"{directory}:{ROOT}", "FAKE_GPUS": json.dumps(gpus)}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(self._leases)],
            env={**self._environment, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def eight_gpus(tmp_path: Path) -> Iterator[Claimers]:
    claimers = Claimers(tmp_path, [f"GPU-{index}" for index in range(8)])
    yield claimers
    claimers.close()


def test_eight_processes_have_a_gpu_each_a_ninth_has_none_and_a_kill_frees_one(eight_gpus: Claimers) -> None:
    processes = [eight_gpus.start() for _ in range(8)]
    claimed = [said(process) for process in processes]
    assert sorted(claimed) == [f"GPU-{index}" for index in range(8)]
    assert said(eight_gpus.start()).startswith("refused: no GPU is free: other workers hold all 8")
    processes[5].send_signal(signal.SIGKILL)
    processes[5].wait()
    assert said(eight_gpus.start()) == claimed[5]


def test_an_operators_choice_is_left_alone(eight_gpus: Claimers) -> None:
    assert said(eight_gpus.start(CUDA_VISIBLE_DEVICES="GPU-7")) == "GPU-7"
    assert said(eight_gpus.start(CUDA_VISIBLE_DEVICES="")) == ""
    assert said(eight_gpus.start()) == "GPU-0"


def test_the_only_gpu_has_one_worker(tmp_path: Path) -> None:
    claimers = Claimers(tmp_path, ["GPU-only"])
    try:
        assert said(claimers.start()) == "GPU-only"
        assert said(claimers.start()).startswith("refused: no GPU is free")
    finally:
        claimers.close()


@pytest.mark.parametrize("gpus", [None, []], ids=["no driver", "no GPU"])
def test_without_a_gpu_nothing_is_claimed(tmp_path: Path, gpus: Any) -> None:
    claimers = Claimers(tmp_path, gpus)
    try:
        assert said(claimers.start()) == "none"
        assert not (tmp_path / "leases").exists()
    finally:
        claimers.close()


def test_mig_instances_are_claimed_instead_of_their_gpu(tmp_path: Path) -> None:
    gpus = [{"uuid": "GPU-a", "mig": ["MIG-1", "MIG-2"]}, {"uuid": "GPU-b", "mig": []}, "GPU-c"]
    claimers = Claimers(tmp_path, gpus)
    try:
        claimed = [said(claimers.start()) for _ in range(4)]
        assert claimed == ["MIG-1", "MIG-2", "GPU-b", "GPU-c"]
    finally:
        claimers.close()


def test_leases_that_cannot_be_written_are_one_clear_line(tmp_path: Path) -> None:
    class Nvml:
        NVMLError = RuntimeError
        nvmlInit = nvmlShutdown = staticmethod(lambda: None)
        nvmlDeviceGetCount = staticmethod(lambda: 2)
        nvmlDeviceGetHandleByIndex = staticmethod(lambda index: f"GPU-{index}")
        nvmlDeviceGetUUID = staticmethod(lambda handle: handle)
        nvmlDeviceGetMigMode = staticmethod(lambda handle: [0, 0])

    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(StartError, match="cannot write GPU leases"):
        claim_gpu(occupied, {}, lambda: Nvml)
    assert device_uuids(None) == []
