"""A `headrace up` that a test runs, reads and stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.children import alive
from tests.support.commands import start
from tests.support.ports import free_port

TIMEOUT_S = 120.0
READY = "Ctrl-C stops."


class Up:
    """The running command; its news, line by line."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, state: Path) -> None:
        self.process = process
        self.address = f"127.0.0.1:{port}"
        self.state = state
        self.lines: list[str] = []

    async def until(self, words: str) -> str:
        """Reads news up to a line with these words; fails the test when the command ends before."""
        assert self.process.stderr is not None
        while line := await asyncio.wait_for(self.process.stderr.readline(), TIMEOUT_S):
            self.lines.append(line.decode().rstrip("\n"))
            if words in self.lines[-1]:
                return self.lines[-1]
        raise AssertionError("\n".join([f"ended without {words!r}:", *self.lines]))

    @property
    def pids(self) -> dict[str, int]:
        """Of the children, from the table."""
        rows = (line.split("\t") for line in self.lines)
        return {row[0]: int(row[2]) for row in rows if len(row) == 6 and row[2].isdigit()}

    @property
    def devices(self) -> dict[str, str]:
        """Of the children, from the table."""
        rows = (line.split("\t") for line in self.lines)
        return {row[0]: row[3] for row in rows if len(row) == 6}

    async def ended(self) -> int:
        """The exit code; asserts that no child is left."""
        out, err = await asyncio.wait_for(self.process.communicate(), TIMEOUT_S)
        self.out = out.decode()
        self.lines += err.decode().splitlines()
        assert not [name for name, pid in self.pids.items() if alive(pid)]
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def running(
    model: Path, state: Path, *flags: str, env: dict[str, str] | None = None
) -> AsyncIterator[Up]:
    """Starts the command on a free port; ends it in whatever way."""
    port = free_port()
    arguments = ("up", "--model", str(model), "--state-dir", str(state), "--port", str(port), *flags)
    process = await start(*arguments, env={"HEADRACE_WORKER_DTYPE": "float32", **(env or {})})
    try:
        yield Up(process, port, state)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
