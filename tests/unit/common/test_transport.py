from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import transport
from services.common.lifecycle import Health
from tests.support.waiting import eventually


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/tmp/x"])
def test_loopback_needs_no_encryption(address: str) -> None:
    transport.check_listener(transport.Listener(address))


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "router:1"])
def test_plain_text_off_loopback_must_be_asked_for(address: str) -> None:
    with pytest.raises(transport.BindError, match="insecure"):
        transport.check_listener(transport.Listener(address))
    transport.check_listener(transport.Listener(address, insecure=True))


async def test_a_taken_port_is_named() -> None:
    first, second = transport.server(), transport.server()
    port = transport.listen(first, transport.Listener("127.0.0.1:0"))
    told = f"cannot listen on 127.0.0.1:{port}: Address already in use; HEADRACE_CACHE_LISTEN sets another"
    with pytest.raises(transport.BindError, match=f"^{told}$"):
        transport.listen(second, transport.Listener(f"127.0.0.1:{port}", setting="HEADRACE_CACHE_LISTEN"))


@pytest.mark.parametrize("part", ["certificate", "key", "authority"])
async def test_tls_that_is_set_in_part_is_refused_and_never_plain_text(part: str, tmp_path: Path) -> None:
    file = tmp_path / "part.pem"
    file.write_text("whatever")
    listener = transport.Listener("127.0.0.1:0", transport.Tls(**{part: file}), insecure=True)
    with pytest.raises(transport.BindError, match="missing"):
        transport.listen(transport.server(), listener)


async def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tls = transport.Tls(certificate=tmp_path / "none.pem", key=tmp_path / "none.key")
    with pytest.raises(transport.BindError, match=r"none\.key"):
        transport.listen(transport.server(), transport.Listener("127.0.0.1:0", tls))


async def test_a_flood_that_comes_while_the_loop_is_busy_is_served_and_nobody_is_cancelled() -> None:
    """gRPC's own default cancels some from 1,000 on, and all from 3,000 on."""
    async with AsyncExitStack() as stack:
        server = transport.server()
        health = Health()
        health.add_to(server)
        port = transport.listen(server, transport.Listener("127.0.0.1:0"))
        await server.start()
        stack.push_async_callback(server.stop, 0)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        stub = health_pb2_grpc.HealthStub(channel)
        await asyncio.to_thread(stub.Check, health_pb2.HealthCheckRequest())
        asked = [stub.Check.future(health_pb2.HealthCheckRequest()) for _ in range(4000)]  # the loop stands
        found = await asyncio.gather(*(asyncio.to_thread(each.code) for each in asked))
        assert set(found) == {grpc.StatusCode.OK}


async def test_a_call_whose_write_failed_leaves_nothing_behind() -> None:
    async def gives_up(_: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"not read"
        await context.abort(grpc.StatusCode.UNAVAILABLE, "enough")

    server = transport.server()
    handler = grpc.stream_stream_rpc_method_handler(gives_up)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"S": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with transport.channel(f"127.0.0.1:{port}", transport.Tls()) as channel:
        call = channel.stream_stream("/t.T/S")()
        with pytest.raises(grpc.aio.AioRpcError):
            await _write_for_ever(call)
        assert _waiting_calls() == 1
        transport.end(call)
        await eventually(lambda: _waiting_calls() == 0, "its task has ended")
    await server.stop(0)


async def _write_for_ever(call: Any) -> None:
    while True:
        await call.write(b"more")
        await asyncio.sleep(0)


def _waiting_calls() -> int:
    """Calls whose half in gRPC's core is not over."""
    return sum("status" in task.get_coro().__qualname__ for task in asyncio.all_tasks())


async def test_a_call_that_ended_well_may_be_ended_again() -> None:
    async def answers(_: Any, __: Any) -> AsyncIterator[bytes]:
        yield b"all"

    server = transport.server()
    handler = grpc.unary_stream_rpc_method_handler(answers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"S": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with transport.channel(f"127.0.0.1:{port}", transport.Tls()) as channel:
        call = channel.unary_stream("/t.T/S")(b"")
        assert [reply async for reply in call] == [b"all"]
        for _ in range(2):
            transport.end(call)
    await server.stop(0)
