"""What health checks and watchers hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.lifecycle import Health, NotServing, Serving

Request = health_pb2.HealthCheckRequest


@asynccontextmanager
async def served(health: Health) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(None)


async def next_of(watcher: Any) -> int:
    reply = await asyncio.wait_for(watcher.read(), 20)
    return int(reply.status)


async def test_a_watcher_that_leaves_takes_nobody_elses_news_with_it() -> None:
    health = Health("named")
    async with served(health) as stub:
        stays, leaves = stub.Watch(Request()), stub.Watch(Request())
        assert [await next_of(stays), await next_of(leaves)] == [Serving, Serving]
        leaves.cancel()
        later = stub.Watch(Request())  # so that the server has heard of the end of the one before
        assert await next_of(later) == Serving
        await health.set(NotServing)
        assert [await next_of(stays), await next_of(later)] == [NotServing, NotServing]


async def test_a_service_that_nobody_knows_is_watched_until_it_is_there() -> None:
    health = Health("named")
    async with served(health) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(Request(service="named"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watcher = stub.Watch(Request(service="named"))
        assert await next_of(watcher) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        await health.set(Serving)
        assert await next_of(watcher) == Serving
        assert (await stub.Check(Request(service="named"))).status == Serving
