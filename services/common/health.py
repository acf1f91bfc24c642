"""The grpc.health.v1 service of a process.

Not grpcio's own: there a watcher that leaves takes the news of all others with it, who wait on for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Request = health_pb2.HealthCheckRequest
Response = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):
    """States by the names of services."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {"": Response.SERVING}
        self._changed = asyncio.Event()

    def set(self, name: str, status: Any) -> None:
        """Sets the state of a service; watchers hear of it."""
        self._statuses[name] = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Request, context: grpc.aio.ServicerContext[Any, Any]) -> Response:
        """The state of a service that is known."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return Response(status=status)

    async def Watch(self, request: Request, _: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Response]:
        """Each state of a service from now on, also of one that is not known."""
        told: Any = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, Response.SERVICE_UNKNOWN)
            if status != told:
                yield Response(status=status)
                told = status
            await changed.wait()
