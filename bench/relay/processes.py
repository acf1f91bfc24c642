"""Children on chosen cores, what CPU time they took, and their end."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from services.common.leash import leashed

ROOT = Path(__file__).parent.parent.parent
LOOPBACK = "127.0.0.1"
READY = "ready"
START_S = 60.0
_STOP_S = 15.0
_TAIL = 800  # bytes of a log in an error


class ChildFailed(RuntimeError):
    """A child ended or was not ready in time; the message has the end of its log."""


class Child:
    """One process, ended by `stop` or with this one. What it prints goes to `log`.

    Args:
        core: the only one that it may use; None: all of this process.
        says_port: whether it prints `ready PORT` when it serves; the port is in `port` then.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        core: int | None,
        scratch: Path,
        environment: Mapping[str, str] | None = None,
        says_port: bool = False,
    ) -> None:
        self.name = name
        self.port = 0
        self._log = scratch / f"{name}.log"
        pinned = () if core is None else ("taskset", "-c", str(core))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                leashed((*pinned, *command)),
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if says_port else log,
                stderr=log,
            )
        if says_port:
            assert self._process.stdout is not None
            self.port = self._hear_port(self._process.stdout)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def cpu_s(self) -> float:
        """User and system time of all its threads that live, in nanoseconds' precision; of no child."""
        return sum(_ran_s(each) for each in Path(f"/proc/{self.pid}/task").iterdir())

    def children(self) -> list[int]:
        """The processes that it has started."""
        return _children(self.pid)

    def move_children(self, core: int) -> None:
        """Puts the processes that it has started on another core."""
        for child in self.children():
            pin(child, core)

    def move(self, core: int) -> None:
        """Puts it on another core; its children stay."""
        pin(self.pid, core)

    def failed(self, why: str) -> ChildFailed:
        """An error with its last words."""
        return ChildFailed(f"{self.name}: {why}: {self._log.read_text(errors='replace')[-_TAIL:]}")

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has ended."""
        if self.running:
            self._process.send_signal(number)

    def stop(self) -> None:
        """Asks it to end, then forces it. Idempotent."""
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _hear_port(self, lines: IO[bytes]) -> int:
        end_s = time.monotonic() + START_S
        while select.select([lines], [], [], max(0.0, end_s - time.monotonic()))[0]:
            words = lines.readline().decode().split()
            if words[:1] == [READY]:
                return int(words[1])
            if not words:
                break
        error = self.failed("is not ready")
        self.stop()
        raise error


def pin(pid: int, core: int) -> None:
    """A process with all its threads to one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def module(name: str, *arguments: object) -> list[str]:
    """The command for one of our modules."""
    return [sys.executable, "-m", f"bench.relay.{name}", *map(str, arguments)]


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def cores() -> tuple[int, int]:
    """The core of what is measured, and that of the rest."""
    usable = os.sched_getaffinity(0)
    return max(usable), min(usable)


def _ran_s(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
