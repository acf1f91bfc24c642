"""One container of a compose file as a plain process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.compose import seconds
from tests.support.ports import free_port

Translate = Callable[[str], str]


class Replica:
    """A process that runs a service's command, with its environment and its health check.

    Args:
        definition: the service as Compose renders it.
        home: working directory; holds the log.
    """

    def __init__(self, name: str, definition: dict[str, Any], home: Path) -> None:
        self.name = name
        self.definition = definition
        self.log = home / "log"
        self._home = home
        self.base = {"HOME": str(home), "PYTHONUNBUFFERED": "1"}  # what an image would give
        self._ports: dict[int, int] = {}
        self._process: asyncio.subprocess.Process | None = None
        home.mkdir(parents=True)

    def port(self, inside: int) -> int:
        """The free port of this machine that stands for one of the container's."""
        return self._ports.setdefault(inside, free_port())

    async def start(self, translate: Translate) -> None:
        """Starts the command; what it prints goes to the log."""
        with self.log.open("wb") as log:
            self._process = await self._run(self.definition["command"], translate, log)

    async def completed(self) -> None:
        """Waits for the end. Raises AssertionError unless it ended well."""
        assert self._process is not None
        assert await self._process.wait() == 0, f"{self.name}:\n{self._tail()}"

    async def healthy(self, translate: Translate) -> None:
        """Waits until the health check passes. Raises AssertionError when the process ends before."""
        assert self._process is not None
        while not await self._check(translate):
            assert self._process.returncode is None, f"{self.name} ended:\n{self._tail()}"
            await asyncio.sleep(0.1)

    async def execute(self, words: Sequence[str], translate: Translate) -> tuple[int, str]:
        """Runs a command beside the service, as `docker compose exec` does: exit code and output."""
        process = await self._run(words, translate, asyncio.subprocess.PIPE)
        output, errors = await process.communicate()
        return process.returncode or 0, (output + errors).decode()

    async def stop(self) -> int | None:
        """Asks it to end, forces it after its grace period; returns the exit code, None if it never ran."""
        if self._process is None:
            return None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await _ended(self._process, seconds(self.definition["stop_grace_period"]))

    async def _check(self, translate: Translate) -> bool:
        check = self.definition["healthcheck"]
        kind, *words = check["test"]
        command = words if kind == "CMD" else ["sh", "-c", *words]
        process = await self._run(command, translate, asyncio.subprocess.DEVNULL)
        return await _ended(process, seconds(check["timeout"])) == 0

    async def _run(
        self, words: Sequence[str], translate: Translate, output: Any
    ) -> asyncio.subprocess.Process:
        given = self.definition.get("environment") or {}
        environment = {name: translate(value) for name, value in given.items() if value is not None}
        return await asyncio.create_subprocess_exec(
            *map(translate, words),
            cwd=self._home,
            env={**self.base, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


async def _ended(process: asyncio.subprocess.Process, within_s: float) -> int:
    try:
        return await asyncio.wait_for(process.wait(), within_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            process.kill()
        return await process.wait()
