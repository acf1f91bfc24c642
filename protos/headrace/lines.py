"""Connections to the routers of a mesh: calls take them in turn, and leave one that broke.

Where a connection broke nobody asks for a moment while there is another address: all streams of a router that
died go on elsewhere at once, whoever else takes connections in turn at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc

from headrace.v1 import router_pb2_grpc

SHUNNED_S = 1.0


class Line:
    """A connection to one address, and the calls that use it."""

    def __init__(self, address: str, channel: grpc.aio.Channel, shunned_until_s: float = 0.0) -> None:
        self.address = address
        self.shunned_until_s = shunned_until_s
        self.channel = channel
        self.stub = router_pb2_grpc.RouterServiceStub(channel)
        self.calls = 0
        self.retired = False


class Lines:
    """One connection an address. Use it in one event loop.

    Args:
        addresses: `host:port`, `unix:path` or any gRPC target; at least one.
        connect: makes the channel to one of them.
    """

    def __init__(self, addresses: Sequence[str], connect: Callable[[str], grpc.aio.Channel]) -> None:
        self._connect = connect
        self._lines = [Line(address, connect(address)) for address in addresses]
        self._turn = 0
        self._retired: set[Line] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._lines)

    def take(self) -> Line:
        """The next connection, for one call; give it back with `give_back`."""
        first, now = self._turn % len(self._lines), time.monotonic()
        in_turn = self._lines[first:] + self._lines[:first]
        line = min(in_turn, key=lambda each: max(0.0, each.shunned_until_s - now))
        self._turn += 1
        line.calls += 1
        return line

    def give_back(self, line: Line) -> None:
        """A call is over."""
        line.calls -= 1
        self._sweep(line)

    def broke(self, line: Line) -> None:
        """The connection is no good: later calls get a new one, which may lead to another router."""
        if line.retired:
            return
        line.retired = True
        self._retired.add(line)
        until_s = time.monotonic() + SHUNNED_S
        self._lines[self._lines.index(line)] = Line(line.address, self._connect(line.address), until_s)
        self._sweep(line)

    async def close(self) -> None:
        """Closes all connections."""
        await asyncio.gather(*self._closing)
        for line in (*self._lines, *self._retired):
            await line.channel.close()

    def _sweep(self, line: Line) -> None:
        """Closes a connection that broke once the last call has left it."""
        if not line.retired or line.calls or line not in self._retired:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # collected after the loop's end, with all it held
            return
        self._retired.discard(line)
        task = loop.create_task(line.channel.close(), name="close of a broken connection")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
