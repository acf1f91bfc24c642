"""The cache service in this process, on a loopback port, and what a member needs to call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from headrace.v1 import cache_pb2_grpc
from prometheus_client import CollectorRegistry

from services.cache import breaker
from services.cache.service import CacheService
from services.cache.settings import CacheSettings
from services.common import transport
from services.common.lifecycle import Serving, Tasks
from services.common.members import MeshSecret
from tests.support.waiting import eventually

SECRET = b"t" * 32


class RunningCache:
    """A cache service that serves."""

    def __init__(self, service: CacheService, registry: CollectorRegistry) -> None:
        self.service = service
        self.address = f"127.0.0.1:{service.port}"
        self.channel = transport.channel(self.address, transport.Tls())
        self.stub: Any = cache_pb2_grpc.CacheServiceStub(self.channel)
        self.member = MeshSecret(SECRET).metadata("cache")
        self._registry = registry

    def value(self, name: str, **labels: str) -> float:
        """A metric's value; 0 when it was never touched."""
        return self._registry.get_sample_value(name, labels) or 0.0

    async def call(self, method: str, request: Any) -> Any:
        """One unary call as a member."""
        return await getattr(self.stub, method)(request, metadata=self.member, timeout=20)

    async def until_valkey_is(self, up: bool) -> None:
        """Waits until the service relies on Valkey, or does not."""
        await eventually(
            lambda: self.value("headrace_cache_valkey_up") == up, f"valkey {'up' if up else 'away'}", 60
        )


@asynccontextmanager
async def running_cache(directory: Path, **settings: Any) -> AsyncIterator[RunningCache]:
    """A service for the time of the block; `settings` as in CacheSettings."""
    secret = directory / "mesh.secret"
    secret.write_bytes(SECRET)
    registry = CollectorRegistry()
    tasks = Tasks()
    settings = {"listen": "127.0.0.1:0", "mesh_secret_file": secret, "lookup_budget_ms": 2000.0, **settings}
    service = CacheService(CacheSettings(**settings), registry, tasks)
    await service.start()
    await service.health.set(Serving)
    running = RunningCache(service, registry)
    try:
        with mock.patch.object(breaker, "SLOW_S", 1.0):  # a busy machine makes no slow Valkey
            yield running
        assert not tasks.failed.done(), tasks.failed.result()
    finally:
        await running.channel.close()
        await tasks.cancel()
        await service.stop()
