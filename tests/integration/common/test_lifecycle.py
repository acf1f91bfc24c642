from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.waiting import eventually_sync

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(project_root: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start_one(*flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.support.sample_service", "--log-format", "json", *flags]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=project_root, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def health(port: str) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True).status)


def until_serving(process: subprocess.Popen[str]) -> str:
    """Returns the port when it serves: it tells it before, and a signal then would end the start."""
    port = line(process).removeprefix("port ")
    eventually_sync(lambda: health(port) == health_pb2.HealthCheckResponse.SERVING, "the service is serving")
    return port


def test_a_signal_drains_and_ends_in_order(start: Start) -> None:
    process = start()
    until_serving(process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert out.split() == ["drain", "drained", "stop"]
    assert process.returncode == 0


def test_it_is_not_serving_while_it_starts(start: Start) -> None:
    process = start("--fault", "hang-listening")
    port = line(process).removeprefix("port ")
    assert health(port) == health_pb2.HealthCheckResponse.NOT_SERVING


def test_it_is_not_serving_while_it_drains(start: Start) -> None:
    process = start("--drain-s", "600", "--drain-timeout-s", "600")
    port = until_serving(process)
    process.send_signal(signal.SIGTERM)
    assert line(process) == "drain"
    assert health(port) == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_second_signal_skips_the_drain(start: Start) -> None:
    process = start("--drain-s", "600", "--drain-timeout-s", "600")
    until_serving(process)
    process.send_signal(signal.SIGINT)
    assert line(process) == "drain"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out.split() == ["stop"]
    assert "drain_cut_short" in err
    assert process.returncode == 0


def test_a_drain_is_bounded(start: Start) -> None:
    process = start("--drain-s", "600", "--drain-timeout-s", "0.1")
    until_serving(process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert out.split() == ["drain", "stop"]
    assert "drain_cut_short" in err


def test_a_dead_task_ends_the_process_with_its_reason(start: Start) -> None:
    process = start("--fault", "task")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "task_failed" in err
    assert "a task died" in err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--fault", "start"], 1, "does not want to start"),
        (["--fault", "hang-start", "--start-timeout-s", "0.1"], 1, "not ready after 0.1 s"),
        (["--listen", "0.0.0.0:0"], 2, "not a loopback address"),
        (["--metrics-listen", "nowhere"], 2, "metrics"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    start: Start, flags: list[str], code: int, words: str
) -> None:
    process = start(*flags)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    (told,) = [text for text in err.splitlines() if text.startswith("headrace: ")]
    assert words in told


def test_a_signal_during_the_start_ends_it(start: Start) -> None:
    process = start("--fault", "hang-start", "--metrics-listen", "127.0.0.1:0")
    eventually_sync(lambda: _catches_signals(process.pid), "its signal handlers are there")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0


def _catches_signals(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(row for row in status.splitlines() if row.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1)))
