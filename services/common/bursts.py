"""Messages that go to one connection in one turn of the event loop leave as one.

gRPC gives each message to the kernel by itself. Each then goes down the whole stack and wakes its reader: a
quarter of what a token costs with 64 streams over one connection. So the kernel is told to wait (TCP_CORK)
from the second message of a turn to the turn's end. The first goes at once, so a connection that gets one
message a turn sees no difference; what fills a segment does not wait either.

gRPC does not say which socket is whose: it is found by its peer's address among this process's. Where that
does not succeed, on other systems and for Unix sockets, all is as before. What was found may be out of date:
then another connection is held up, to the end of the same turn. Nothing here owns a socket.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote

MOST_KNOWN = 4096
LOOK_S = 0.1
"""Shortest time between looks through all sockets, of which each costs microseconds."""
_Address = tuple[str, int]


class Bursts:
    """The connections of one server. For the thread of its event loop."""

    def __init__(self) -> None:
        self.turn = 0
        """Counts those in which something was written."""
        self._known: OrderedDict[str, Connection] = OrderedDict()
        self._held: list[int] = []
        self._begun = False
        self._sockets = _Sockets()

    def to(self, peer: str) -> Connection:
        """The connection to a peer, as gRPC names it."""
        found = self._known.get(peer)
        if found is None:
            found = self._known[peer] = Connection(self, peer)
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        return found

    def hold(self, connection: Connection) -> None:
        """Holds back what is written to it, to the end of the turn."""
        if connection.address is None:
            return
        if connection.socket is None:
            connection.socket = self._sockets.to(connection.address)
        if connection.socket is not None and _cork(connection.socket, held=True):
            self._held.append(connection.socket)

    def begin(self) -> None:
        """Something is written in this turn."""
        if not self._begun:
            self._begun = True
            asyncio.get_running_loop().call_soon(self._over)

    def _over(self) -> None:
        self._begun = False
        self.turn += 1
        for each in self._held:
            _cork(each, held=False)
        self._held.clear()


class Connection:
    """One client's connection, which may carry many calls."""

    __slots__ = ("_bursts", "_messages", "_turn", "address", "socket")

    def __init__(self, bursts: Bursts, peer: str) -> None:
        self.address = _address(peer)
        self.socket: int | None = None
        """Its descriptor, when that was found."""
        self._bursts = bursts
        self._turn = -1
        self._messages = 0

    def writes(self) -> None:
        """To be called ahead of each message to it."""
        bursts = self._bursts
        if self._turn != bursts.turn:
            self._turn, self._messages = bursts.turn, 1
            bursts.begin()
            return
        self._messages += 1
        if self._messages == 2:
            bursts.hold(self)


class _Sockets:
    """This process's connected sockets by the address of their peer."""

    def __init__(self) -> None:
        self._by_peer: dict[_Address, int] = {}
        self._looked_s = -LOOK_S

    def to(self, address: _Address) -> int | None:
        """The descriptor of the one that is connected to it; None where none was seen yet."""
        if address not in self._by_peer and time.monotonic() - self._looked_s >= LOOK_S:
            self._by_peer = dict(_connected())
            self._looked_s = time.monotonic()
        return self._by_peer.get(address)


def _address(peer: str) -> _Address | None:
    """Of a peer over TCP, on Linux."""
    family, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if family not in ("ipv4", "ipv6") or sys.platform != "linux":
        return None
    with suppress(ValueError):
        return _plain(host.strip("[]")), int(port)
    return None


def _plain(host: str) -> str:
    """An IPv4 address that came as IPv6 is the same."""
    found = ipaddress.ip_address(host)
    return str(getattr(found, "ipv4_mapped", None) or found)


def _connected() -> Iterator[tuple[_Address, int]]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError, ValueError), _borrowed(int(name)) as found:
            if found.type == socket.SOCK_STREAM and found.family in (socket.AF_INET, socket.AF_INET6):
                host, port = found.getpeername()[:2]
                yield (_plain(host), port), int(name)


def _cork(descriptor: int, *, held: bool) -> bool:
    """Whether the kernel does as told: not where the connection is gone."""
    with suppress(OSError), _borrowed(descriptor) as found:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, int(held))
        return True
    return False


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """gRPC's socket, which stays gRPC's. Raises OSError for what is none."""
    found = socket.socket(fileno=descriptor)
    try:
        yield found
    finally:
        found.detach()
