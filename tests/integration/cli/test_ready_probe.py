"""Whether a child serves: its health is watched, so that what changes is known at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.cli.up import ready

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Watched(health.aio.HealthServicer):  # type: ignore[misc]
    """Tells when somebody watches."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        self.watched.set()
        await super().Watch(request, context)


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[tuple[str, Watched, grpc.aio.Server]]:
    server, servicer = grpc.aio.server(), Watched()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", NOT_SERVING)
    address = f"unix:{tmp_path}/child.sock"
    server.add_insecure_port(address)
    await server.start()
    yield address, servicer, server
    await server.stop(None)


async def test_a_child_that_becomes_ready_while_it_is_watched_is_seen(
    child: tuple[str, Watched, grpc.aio.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "PROBE_S", 30.0)
    address, servicer, _ = child
    probe = asyncio.create_task(ready.grpc_serving(address)())
    await servicer.watched.wait()
    await servicer.set("", SERVING)
    assert await probe


async def test_a_child_that_does_not_serve_in_time_is_not_ready(
    child: tuple[str, Watched, grpc.aio.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "PROBE_S", 0.2)
    assert not await ready.grpc_serving(child[0])()


async def test_a_child_that_ends_while_it_is_watched_is_not_ready(
    child: tuple[str, Watched, grpc.aio.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "PROBE_S", 30.0)
    address, servicer, server = child
    probe = asyncio.create_task(ready.grpc_serving(address)())
    await servicer.watched.wait()
    await server.stop(None)
    assert not await probe
