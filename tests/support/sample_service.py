"""A service process with nothing in it but its life: `python -m tests.support.sample_service FLAGS`."""

from __future__ import annotations

import asyncio
import sys
from typing import ClassVar, Literal

from prometheus_client import CollectorRegistry
from pydantic import Field

from services.common import lifecycle, transport
from services.common.settings import ServiceSettings, load_or_exit


class SampleSettings(ServiceSettings):
    """How the sample behaves."""

    service: ClassVar[str] = "sample"
    listen: str = Field(default="127.0.0.1:0", description="host:port")
    fault: Literal["none", "start", "hang-start", "hang-listening", "task"] = Field(
        default="none", description="what goes wrong"
    )
    drain_s: float = Field(default=0.0, description="how long its drain takes, in seconds")


class SampleService:
    """Prints each phase on standard output."""

    def __init__(self, settings: SampleSettings, _: CollectorRegistry, tasks: lifecycle.Tasks) -> None:
        self._settings = settings
        self._server = transport.server()
        self.tasks = tasks
        self.health = lifecycle.Health("sample")

    async def start(self) -> None:
        if self._settings.fault == "start":
            raise lifecycle.StartError("the sample does not want to start")
        if self._settings.fault == "hang-start":
            await asyncio.Event().wait()
        self.health.add_to(self._server)
        port = transport.listen(self._server, self._settings.listener())
        await self._server.start()
        print(f"port {port}", flush=True)
        if self._settings.fault == "hang-listening":
            await asyncio.Event().wait()
        if self._settings.fault == "task":
            self.tasks.spawn(self._fail(), "failing")

    async def drain(self) -> None:
        print("drain", flush=True)
        await asyncio.sleep(self._settings.drain_s)
        print("drained", flush=True)

    async def stop(self) -> None:
        await self._server.stop(0)
        print("stop", flush=True)

    async def _fail(self) -> None:
        raise RuntimeError("a task died")


if __name__ == "__main__":
    sys.exit(lifecycle.run(SampleService, load_or_exit(SampleSettings, sys.argv[1:])))
