"""One supervised process: how to start it, whether it is ready, why it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.cli.up.last_words import last_words, reason
from services.common import leash

_POLL_S = 0.05
_LAST_BYTES = 8192
_RECENT_S = 10.0
"""Age beyond which an event in the log had nothing to do with the end."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to run.

    Attributes:
        environment: all of it; nothing is inherited.
        ready: whether the process serves; asked again and again, must not raise.
        stage: drained in ascending order; equal ones together.
        start_timeout_s: longest time until it is ready.
        stop_timeout_s: longest time that it may take to end when asked.
        address, device, metrics_url: for people.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    ready: Callable[[], Awaitable[bool]]
    stage: int = 0
    start_timeout_s: float = 120.0
    stop_timeout_s: float = 25.0
    address: str = ""
    device: str = ""
    metrics_url: str = ""


class NotReady(Exception):
    """The child ended, or took too long, before it was ready; the message says why."""


class Child:
    """A process that may be started again after it ended. Standard output and error go to its log.

    It leads a process group of its own: a Ctrl-C at the terminal does not reach it, and what it leaves behind
    when it dies is ended with it.
    """

    def __init__(self, spec: ChildSpec, logs: Path) -> None:
        self.spec = spec
        self.log = logs / f"{spec.name}.log"
        self.ready_since_s: float | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._log_begins = 0

    @property
    def pid(self) -> int:
        """Of the process that runs or ran last; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process; returns before it is ready. Raises OSError."""
        self.ready_since_s = None
        with self.log.open("ab") as log:
            self._log_begins = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *leash.leashed(self.spec.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.spec.environment),
                start_new_session=True,
            )

    async def become_ready(self) -> None:
        """Returns when it serves. Raises NotReady."""
        end_s = time.monotonic() + self.spec.start_timeout_s
        while not (await self.spec.ready() and self.running):
            if not self.running:
                raise NotReady("; ".join([self.end(), *self.last_words(1)]))
            if time.monotonic() > end_s:
                raise NotReady(f"not ready after {self.spec.start_timeout_s:g} s")
            await asyncio.sleep(_POLL_S)
        self.ready_since_s = time.monotonic()

    async def wait(self) -> None:
        """Returns when the process has ended, and ends what it left behind."""
        if self._process is not None:
            await self._process.wait()
            self._signal_group(signal.SIGKILL)

    async def stop(self, timeout_s: float | None = None) -> bool:
        """Asks the process to end and waits. Returns whether it did so in time, else it is killed."""
        if self._process is None:
            return True
        limit_s = self.spec.stop_timeout_s if timeout_s is None else timeout_s
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self.wait(), limit_s)
        except TimeoutError:
            self.kill()
            await self.wait()
            return False
        return True

    def kill(self) -> None:
        """Ends the process and its group at once."""
        self._signal_group(signal.SIGKILL)

    def end(self) -> str:
        """How it ended, in words."""
        return describe(self._process.returncode if self._process else None)

    @property
    def ended_well(self) -> bool:
        """Whether it ended because it was asked to, and said so."""
        return self._process is not None and self._process.returncode == 0

    def reason(self) -> str:
        """Why it ended, where its log says so; else empty."""
        return reason(self._last_lines())

    def last_words(self, count: int) -> list[str]:
        """The last lines of its log that are worth telling."""
        since = datetime.now(UTC) - timedelta(seconds=_RECENT_S)
        return last_words(self._last_lines(), count, since.isoformat())

    def _last_lines(self) -> list[str]:
        """Of its log, since it was started last."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(self._log_begins, self.log.stat().st_size - _LAST_BYTES))
            return file.read().decode(errors="replace").splitlines()
        return []

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def describe(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "still runs"
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
