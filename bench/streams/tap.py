"""A TCP relay whose clients can be made to get one byte a second."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Self

from bench.relay.processes import LOOPBACK

BYTE_S = 1.0
_PIECE_BYTES = 1 << 16
_BUFFER_BYTES = 4096  # what the kernel keeps for the relay; it has bounds of its own


class Tap:
    """Carries connections to an upstream address. What clients send always flows.

    Opened it is as wide as the network; turned down, each connection gets a byte every BYTE_S.
    """

    def __init__(self, upstream: str) -> None:
        self.address = ""
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._wide = asyncio.Event()
        self._wide.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.address = f"{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._carrying):
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def open(self) -> None:
        """Everything flows."""
        self._wide.set()

    def turn_down(self) -> None:
        """One byte a second from now on."""
        self._wide.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await self._dial()
        try:
            with suppress(OSError, ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pour(reader, upstream[1]))
                    group.create_task(self._drip(upstream[0], writer))
        finally:
            for each in (writer, upstream[1]):
                each.close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        link.setblocking(False)
        await asyncio.get_running_loop().sock_connect(link, (self._host, self._port))
        return await asyncio.open_connection(sock=link, limit=_BUFFER_BYTES)

    async def _drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As the tap says; ends both ways when either has ended."""
        while True:
            wide = self._wide.is_set()
            piece = await reader.read(_PIECE_BYTES if wide else 1)
            if not piece:
                raise ConnectionError("the upstream has ended")
            writer.write(piece)
            await writer.drain()
            if not wide:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wide.wait(), BYTE_S)


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    raise ConnectionError("the client has ended")
