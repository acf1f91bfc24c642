"""On real sockets of this process: what leaves when."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from services.common.bursts import MOST_KNOWN, Bursts, Connection

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")


class Pair:
    """Both ends of a connection: ours, and that of its peer."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.ours, self.theirs = ours, theirs
        theirs.setblocking(False)
        host, port = theirs.getsockname()[:2]
        self.name = f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def write(self, connection: Connection, message: bytes) -> None:
        """As gRPC does it, each by itself."""
        connection.writes()
        self.ours.sendall(message)

    def read(self) -> bytes:
        """What has come."""
        try:
            return self.theirs.recv(1 << 16)
        except BlockingIOError:
            return b""


@contextmanager
def connected(host: str = "127.0.0.1") -> Iterator[Pair]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as theirs:
        listener.bind((host, 0))
        listener.listen()
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with ours:
            yield Pair(ours, theirs)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_first_message_of_a_turn_goes_at_once_and_the_others_together_after_it(host: str) -> None:
    with connected(host) as pair:
        connection = Bursts().to(pair.name)
        for turn in range(3):
            pair.write(connection, b"a")
            assert pair.read() == b"a", turn
            pair.write(connection, b"b")
            pair.write(connection, b"c")
            assert pair.read() == b"", turn
            await asyncio.sleep(0)
            assert pair.read() == b"bc", turn


async def test_a_connection_with_one_message_a_turn_is_never_held() -> None:
    with connected() as pair:
        connection = Bursts().to(pair.name)
        for number in range(5):
            pair.write(connection, b"%d" % number)
            assert pair.read() == b"%d" % number
            await asyncio.sleep(0)


async def test_what_fills_a_segment_does_not_wait() -> None:
    size = 200_000
    with connected() as pair:
        connection = Bursts().to(pair.name)
        pair.write(connection, b"a")
        pair.write(connection, bytes(size))
        come = len(pair.read())
        assert come > 1
        await asyncio.sleep(0)
        while more := len(pair.read()):
            come += more
        assert come == 1 + size


async def test_connections_do_not_hold_each_other() -> None:
    bursts = Bursts()
    with connected() as held, connected() as other:
        first, second = bursts.to(held.name), bursts.to(other.name)
        for _ in range(2):
            held.write(first, b"x")
        other.write(second, b"y")
        assert (held.read(), other.read()) == (b"x", b"y")
        await asyncio.sleep(0)
        assert (held.read(), other.read()) == (b"x", b"")


@pytest.mark.parametrize(
    "peer", ["unix:/tmp/x", "unix:", "ipv4:127.0.0.1:1", "ipv4:nonsense", "ipv4:127.0.0.1:x", "", "ipv6:%5B"]
)
async def test_for_a_peer_that_cannot_be_found_all_is_as_before(peer: str) -> None:
    with connected() as pair:
        connection = Bursts().to(peer)
        for _ in range(3):
            pair.write(connection, b"a")
            assert pair.read() == b"a"
        await asyncio.sleep(0)


async def test_a_connection_that_is_gone_harms_nobody() -> None:
    bursts = Bursts()
    with connected() as pair:
        connection = bursts.to(pair.name)
        for _ in range(2):
            pair.write(connection, b"a")
        await asyncio.sleep(0)
    for _ in range(2):
        connection.writes()
    await asyncio.sleep(0)


async def test_a_connection_that_closes_while_it_is_held_harms_nobody() -> None:
    with connected() as pair:
        connection = Bursts().to(pair.name)
        for _ in range(2):
            pair.write(connection, b"a")
    await asyncio.sleep(0)


async def test_its_sockets_stay_open_and_whose_they_are() -> None:
    with connected() as pair:
        descriptor = pair.ours.fileno()
        connection = Bursts().to(pair.name)
        for _ in range(2):
            pair.write(connection, b"a")
        await asyncio.sleep(0)
        del connection
        assert pair.ours.fileno() == descriptor
        pair.ours.sendall(b"still there")
        assert pair.read().endswith(b"still there")


async def test_only_so_many_connections_are_remembered() -> None:
    bursts = Bursts()
    first = bursts.to("ipv4:10.0.0.1:1")
    assert bursts.to("ipv4:10.0.0.1:1") is first
    for port in range(MOST_KNOWN):
        bursts.to(f"ipv4:10.0.0.2:{port}")
    assert bursts.to("ipv4:10.0.0.1:1") is not first


async def _call(address: str, bursts: Bursts) -> Connection:
    """A call over gRPC, and the connection that it came over, which got two messages in one turn."""
    used: list[Connection] = []

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        used.append(bursts.to(context.peer()))
        for _ in range(2):
            used[0].writes()
        return request

    server = grpc.aio.server()
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.X", handlers),))
    port = server.add_insecure_port(address)
    await server.start()
    target = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        assert await channel.unary_unary("/x.X/Say")(b"hello") == b"hello"
    await server.stop(None)
    return used[0]


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "[::]:0"])
async def test_the_socket_of_a_call_over_grpc_is_found(address: str) -> None:
    assert (await _call(address, Bursts())).socket is not None


async def test_a_call_over_a_unix_socket_is_answered_as_before(tmp_path: Path) -> None:
    assert (await _call(f"unix:{tmp_path}/x", Bursts())).socket is None
