"""The worker service in this process over a gated fake engine, attached to routers that a test scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common import transport
from services.common.lifecycle import NotServing, Serving, Tasks
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings
from tests.support.gated_engine import StepGate, start_gated
from tests.support.session_router import SECRET
from tests.support.tiny_llama import TinyLlama, write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer
from tests.support.waiting import eventually_async


class RunningWorker:
    """A worker that has started."""

    def __init__(
        self, service: WorkerService, registry: CollectorRegistry, gate: StepGate, left: list[bool]
    ) -> None:
        self.service = service
        self.gate = gate
        self.left = left
        self._registry = registry
        self._channel = transport.channel(f"127.0.0.1:{service.port}", transport.Tls())

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 when it was never touched."""
        return self._registry.get_sample_value(name, labels) or 0.0

    async def is_serving(self) -> bool:
        """What grpc.health.v1 says."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def until_serving(self, serving: bool) -> None:
        """Waits for the health."""

        async def reached() -> bool:
            return await self.is_serving() is serving

        await eventually_async(reached, f"serving is {serving}")

    async def drain(self) -> None:
        """As the lifecycle does at a stop signal."""
        await self.service.health.set(NotServing)
        await self.service.drain()

    async def close(self) -> None:
        """Ends the test's own channel."""
        await self._channel.close()


@asynccontextmanager
async def running_worker(
    directory: Path, *routers: str, secret: bytes = SECRET, **settings: Any
) -> AsyncIterator[RunningWorker]:
    """A worker for the time of the block; `settings` as in WorkerSettings."""
    gate, left = StepGate(), []
    registry, tasks = CollectorRegistry(), Tasks()
    made = {
        "model": str(write_model(directory / "model")),
        "routers": routers,
        "mesh_secret_file": write_secret(directory, secret),
        "worker_id": "worker-1",
        "device": "cpu",
        **settings,
    }
    service = WorkerService(
        WorkerSettings(**made),
        registry,
        tasks,
        start_engine=partial(start_gated, gate=gate),
        leave=lambda: left.append(True),
    )
    await service.start()
    await service.health.set(Serving)
    worker = RunningWorker(service, registry, gate, left)
    try:
        yield worker
        assert not tasks.failed.done(), tasks.failed.result()
    finally:
        gate.open()
        await worker.close()
        await tasks.cancel()
        await service.stop()


def write_secret(directory: Path, secret: bytes = SECRET) -> Path:
    """A mesh secret file."""
    path = directory / "mesh.secret"
    path.write_text(secret.hex())
    return path


def write_model(directory: Path) -> Path:
    """A tiny model in Hugging Face's layout."""
    if not directory.exists():
        write_tiny_tokenizer(directory)
        write_tiny_llama(directory, TinyLlama(layers=2))
    return directory
