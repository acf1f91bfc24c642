"""Connections to the routers of a mesh: calls take them in turn, and leave one that broke.

Where a connection broke nobody asks until another stands there, as long as there is another address: all
streams of a router that died go on elsewhere at once, whoever else takes connections in turn meanwhile.

Behind one address there may be several routers, and one that is frozen goes on taking connections, which come
to nothing: what takes long to connect is dialled again beside, and the first that stands is used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc

from headrace.v1 import router_pb2_grpc

SHUNNED_S = 1.0
DIALS_S = (0.5, 1.5, 3.5)
"""When one that does not stand yet is dialled once more; a busy router is late, too, and must not drown."""
DIALS_AFTER_A_BREAK_S = (0.2, 0.4, 0.6, 0.9, 1.2, 1.6, 2.0, 2.5, 3.0)
"""Where one router is known not to answer, and streams wait: half of two routers' dials may come to it."""
LOOK_S = 0.005
_NOT_YET = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)


class Line:
    """A connection to one address, and the calls that use it."""

    def __init__(self, address: str, channel: grpc.aio.Channel, shunned_until_s: float = 0.0) -> None:
        self.address = address
        self.shunned_until_s = shunned_until_s
        self.channel = channel
        self.stub = router_pb2_grpc.RouterServiceStub(channel)
        self.calls = 0
        self.retired = False
        self.dialling: asyncio.Task[Line] | None = None

    @property
    def stands(self) -> bool:
        """Whether it is connected; it connects where it is not."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    def shunned_s(self, now: float) -> tuple[bool, float]:
        """What speaks against it: that it replaces one that broke and does not stand, and for how long."""
        if not self.shunned_until_s:
            return False, 0.0
        if self.stands and now >= self.shunned_until_s:
            self.shunned_until_s = 0.0
        return self.shunned_until_s > 0, max(0.0, self.shunned_until_s - now)


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
        self._dials: set[asyncio.Task[Line]] = set()

    def __len__(self) -> int:
        return len(self._lines)

    def take(self) -> Line:
        """The next connection, for one call; give it back with `give_back`."""
        first, now = self._turn % len(self._lines), time.monotonic()
        in_turn = self._lines[first:] + self._lines[:first]
        line = min(in_turn, key=lambda each: each.shunned_s(now))
        self._turn += 1
        line.calls += 1
        return line

    async def reach(self, line: Line, timeout_s: float | None) -> Line:
        """The line to use instead of one that was taken: it stands, or its call will say why it does not."""
        if line.retired or line.stands:
            return line
        if line.dialling is None or line.dialling.done():
            line.dialling = asyncio.create_task(self._dial(line), name="dial")
            self._dials.add(line.dialling)
            line.dialling.add_done_callback(self._dials.discard)
        await asyncio.wait((line.dialling,), timeout=timeout_s)
        found = line.dialling.result() if line.dialling.done() else line
        found.calls += 1
        self.give_back(line)
        return found

    def give_back(self, line: Line) -> None:
        """A call is over."""
        line.calls -= 1
        self._sweep(line)

    def broke(self, line: Line) -> None:
        """The connection is no good: later calls get a new one, which may lead to another router."""
        if line.retired:
            return
        self._replace(line, self._connect(line.address), time.monotonic() + SHUNNED_S)

    async def close(self) -> None:
        """Closes all connections."""
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        await asyncio.gather(*self._closing)
        for line in (*self._lines, *self._retired):
            await line.channel.close()

    def _replace(self, line: Line, channel: grpc.aio.Channel, shunned_until_s: float = 0.0) -> Line:
        """Later calls take another channel to the address; those that run keep theirs."""
        line.retired = True
        self._retired.add(line)
        new = Line(line.address, channel, shunned_until_s)
        self._lines[self._lines.index(line)] = new
        self._sweep(line)
        return new

    def _sweep(self, line: Line) -> None:
        """Closes a connection that broke once the last call has left it."""
        if not line.retired or line.calls or line not in self._retired:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # collected after the loop's end, with all it held
            return
        self._retired.discard(line)
        self._close(loop, line.channel)

    def _close(self, loop: asyncio.AbstractEventLoop, channel: grpc.aio.Channel) -> None:
        task = loop.create_task(channel.close(), name="close of a connection")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _dial(self, line: Line) -> Line:
        """Looks until one of the dials stands, or the first has failed."""
        dials, loop = [line.channel], asyncio.get_running_loop()
        delays_s = DIALS_AFTER_A_BREAK_S if line.shunned_until_s else DIALS_S
        due_s = [loop.time() + each for each in delays_s]
        chosen = line.channel
        try:
            while (decided := _decided(dials)) is None:
                await asyncio.sleep(LOOK_S)
                if due_s and loop.time() >= due_s[0]:
                    due_s.pop(0)
                    dials.append(self._connect(line.address))
            if decided is line.channel or line.retired:
                return line
            chosen = decided
            return self._replace(line, chosen)
        finally:
            for dial in dials[1:]:
                if dial is not chosen:
                    self._close(loop, dial)


def _decided(channels: Sequence[grpc.aio.Channel]) -> grpc.aio.Channel | None:
    """The channel that stands; else the first one, where it has failed."""
    states = [each.get_state(try_to_connect=True) for each in channels]
    if grpc.ChannelConnectivity.READY in states:
        return channels[states.index(grpc.ChannelConnectivity.READY)]
    return None if states[0] in _NOT_YET else channels[0]
