"""More connections to the public port than a router has descriptors: what the mesh needs is not theirs."""

from __future__ import annotations

import secrets
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.transport import Tls, channel
from tests.support.mesh import Process, serving
from tests.support.ports import free_port

DESCRIPTORS = 128


async def is_told_at_once(address: str) -> grpc.StatusCode:
    """How a call on a new connection ends, which must not take long."""
    own = channel(address, Tls())
    stub: Any = health_pb2_grpc.HealthStub(own)
    began_s = time.monotonic()
    try:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await own.close()
        assert time.monotonic() - began_s < 5
    return grpc.StatusCode.OK


async def test_strangers_who_connect_keep_no_worker_out(tmp_path: Path) -> None:
    (tmp_path / "mesh.secret").write_text(secrets.token_hex(32))
    public, inside = (f"127.0.0.1:{free_port()}" for _ in range(2))
    environment = {
        "HEADRACE_MESH_SECRET_FILE": str(tmp_path / "mesh.secret"),
        "HEADRACE_ROUTER_LISTEN": public,
        "HEADRACE_ROUTER_MESH_LISTEN": inside,
        "HEADRACE_ROUTER_TOKENIZER_WAIT_S": "0",
    }
    command = f"ulimit -n {DESCRIPTORS}; exec {sys.executable} -m services.router"
    router = Process.of("router", tmp_path, ["bash", "-c", command], environment)
    try:
        first = channel(inside, Tls())
        await serving(router, first)
        await first.close()
        host, _, port = public.partition(":")
        with ExitStack() as strangers:
            for _ in range(2 * DESCRIPTORS):
                strangers.enter_context(socket.create_connection((host, int(port))))
            assert await is_told_at_once(inside) is grpc.StatusCode.OK, "a worker would be let in"
            assert await is_told_at_once(public) is grpc.StatusCode.UNAVAILABLE, (
                "a client hears that it is full"
            )
        await serving(router, channel(public, Tls()))
    finally:
        router.popen.kill()
        router.popen.wait()
