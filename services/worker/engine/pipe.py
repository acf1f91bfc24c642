"""The parent's end of an engine's pipe in an event loop: no threads, one wake-up a report.

Messages are framed as `multiprocessing.connection.Connection` frames them, which the engine's end is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self, cast

from services.worker.engine.wire import packed, unpacked

_LENGTH = struct.Struct("!i")
_LONG_LENGTH = struct.Struct("!Q")  # follows a length of -1


class EnginePipe(asyncio.Protocol):
    """Calls `hear` with each message, and `lost` once when the other end is closed."""

    def __init__(self, hear: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._hear = hear
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def over(
        cls, connection: Connection, hear: Callable[[Any], None], lost: Callable[[], None]
    ) -> Self:
        """Takes over a connection, which is closed by that."""
        end = socket.socket(fileno=os.dup(connection.fileno()))
        connection.close()
        loop = asyncio.get_running_loop()
        _, pipe = await loop.create_unix_connection(lambda: cls(hear, lost), sock=end)
        return pipe

    def send(self, message: object) -> None:
        """Never blocks; nothing happens when the other end is gone."""
        assert self._transport is not None, "connected"
        if self._transport.is_closing():
            return
        body = packed(message)
        self._transport.write(_LENGTH.pack(len(body)) + body)

    def close(self) -> None:
        """Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop has it."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Some bytes came: all messages that are whole are heard."""
        if not self._buffer:
            self._buffer += data[self._hear_all(data) :]
            return
        self._buffer += data
        del self._buffer[: self._hear_all(self._buffer)]

    def connection_lost(self, error: Exception | None) -> None:
        """The other end is closed, or this one."""
        self._lost()

    def _hear_all(self, data: bytes | bytearray) -> int:
        """Hears the messages that are whole; where the first that is not begins."""
        begin = 0
        while begin < len(data) and (frame := _frame(data, begin)) is not None:
            body, begin = frame
            self._hear(unpacked(body))
        return begin


def _frame(data: bytes | bytearray, begin: int) -> tuple[bytes, int] | None:
    """The message that begins there, and where the next one does; None: it is not whole."""
    start = begin + _LENGTH.size
    if len(data) < start:
        return None
    (length,) = _LENGTH.unpack_from(data, begin)
    if length == -1:
        start += _LONG_LENGTH.size
        if len(data) < start:
            return None
        (length,) = _LONG_LENGTH.unpack_from(data, begin + _LENGTH.size)
    end = start + length
    return (bytes(data[start:end]), end) if len(data) >= end else None
