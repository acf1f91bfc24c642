"""The worker service in this process, with the real torch engine in a thread of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from services.common.lifecycle import NotServing, Serving, Tasks
from services.worker.engine.client import EngineClient
from services.worker.engine.torch.load import load_torch_engine
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings

start_in_thread = partial(EngineClient.start, loader=load_torch_engine, in_process=True)
"""Not calibrated: a test needs no prediction of times."""


class TorchWorker:
    """A worker that has started."""

    def __init__(self, service: WorkerService, registry: CollectorRegistry) -> None:
        self.service = service
        self._registry = registry

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 when it was never touched."""
        return self._registry.get_sample_value(name, labels) or 0.0

    async def drain(self) -> None:
        """As the lifecycle does at a stop signal."""
        await self.service.health.set(NotServing)
        await self.service.drain()


@asynccontextmanager
async def torch_worker(
    model: Path, secret_file: Path, *routers: str, worker_id: str = "worker-1", **settings: Any
) -> AsyncIterator[TorchWorker]:
    """A worker for the time of the block; `settings` as in WorkerSettings."""
    registry, tasks = CollectorRegistry(), Tasks()
    made = {
        "model": str(model),
        "routers": routers,
        "mesh_secret_file": secret_file,
        "worker_id": worker_id,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "kv_blocks": 512,
        "max_seqs": 128,
        **settings,
    }
    service = WorkerService(
        WorkerSettings(**made), registry, tasks, start_engine=start_in_thread, leave=lambda: None
    )
    await service.start()
    await service.health.set(Serving)
    try:
        yield TorchWorker(service, registry)
        assert not tasks.failed.done(), tasks.failed.result()
    finally:
        await tasks.cancel()
        await service.stop()
