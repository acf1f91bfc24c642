"""A network of our own between processes: it carries bytes until a test says that it does not.

async with TcpRelay(port) as relay:
    …somebody dials relay.address…
    relay.drop(relay.connections)   # nothing arrives any more, either way; no connection ends
    relay.heal()                    # what was sent in between arrives now
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Self

CHUNK = 1 << 16


class Connection:
    """One connection, carried both ways."""

    def __init__(self) -> None:
        self.carrying = asyncio.Event()
        self.carrying.set()

    async def run(
        self,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Carries until either end closes."""
        ways = [self._carry(here[0], there[1]), self._carry(there[0], here[1])]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in tasks:
                each.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                await self.carrying.wait()
                writer.write(data)
                await writer.drain()


class TcpRelay:
    """Carries connections to one port of this machine."""

    def __init__(self, port: int) -> None:
        self.connections: list[Connection] = []
        """All that are open, the oldest first."""
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """host:port to dial."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self, connections: Iterable[Connection]) -> None:
        """These carry nothing from now on."""
        for each in connections:
            each.carrying.clear()

    def heal(self) -> None:
        """All carry again."""
        for each in self.connections:
            each.carrying.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = Connection()
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            there = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(there[1]):
                self.connections.append(connection)
                try:
                    await connection.run((reader, writer), there)
                finally:
                    self.connections.remove(connection)
