"""Whether a child serves. Every probe is bounded and answers False instead of raising."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

PROBE_S = 2.0
Probe = Callable[[], Awaitable[bool]]


def grpc_serving(address: str) -> Probe:
    """Whether grpc.health.v1 says SERVING at `host:port` or `unix:path`, now or within PROBE_S.

    It is watched, not asked again and again: processes that start need the cores for themselves.
    """

    async def probe() -> bool:
        if not await _accepts(address):
            return False  # cheaper than a channel, while there is nobody
        import grpc
        from grpc_health.v1 import health_pb2

        async with grpc.aio.insecure_channel(address) as channel:
            watch = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            states = watch(health_pb2.HealthCheckRequest(), timeout=PROBE_S)
            try:
                async for found in states:
                    if found.status == health_pb2.HealthCheckResponse.SERVING:
                        return True
            except grpc.aio.AioRpcError:
                return False
            finally:
                states.cancel()
        return False

    return probe


def valkey_ponging(socket: Path) -> Probe:
    """Whether a Valkey answers on its Unix socket."""

    async def probe() -> bool:
        try:
            return await asyncio.wait_for(_ping(socket), PROBE_S)
        except (OSError, TimeoutError):
            return False

    return probe


async def _ping(socket: Path) -> bool:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    finally:
        writer.close()


async def _accepts(address: str) -> bool:
    try:
        if address.startswith("unix:"):
            connection = asyncio.open_unix_connection(address.removeprefix("unix:"))
            _, writer = await asyncio.wait_for(connection, PROBE_S)
        else:
            host, _, port = address.rpartition(":")
            _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), PROBE_S)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
