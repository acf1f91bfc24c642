"""The asyncio side of an engine: submit, abort, and one report a step, from one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Self

from services.worker.engine.base import EngineDescription
from services.worker.engine.errors import EngineDied, EngineError
from services.worker.engine.load import EngineLoader, load_engine
from services.worker.engine.process import EngineHost, host_engine
from services.worker.engine.report import Commands, StepReport
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import Request


class EngineClient:
    """A running engine. All methods belong to the event loop that started it; see the package's docstring."""

    def __init__(self, host: EngineHost, connection: Connection, description: EngineDescription) -> None:
        self.description = description
        self._host = host
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._turn = Commands()
        self._outgoing: queue.SimpleQueue[Commands | None] = queue.SimpleQueue()
        self._arrived: deque[StepReport] = deque()
        self._news = asyncio.Event()
        self._ended: EngineError | None = None
        self._closing = False
        self._threads = [
            threading.Thread(target=target, name=f"engine-{target.__name__}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    async def start(
        cls, settings: EngineSettings, *, loader: EngineLoader = load_engine, in_process: bool = False
    ) -> Self:
        """Start an engine and wait until it can serve.

        `loader` must be importable by name (it runs in a spawned process). Cancelling ends the engine.
        Raises EngineLoadError with one line that says what to change, or EngineDied.
        """
        host, connection = host_engine(settings, loader, in_process=in_process)
        try:
            description = await _first_message(connection, host)
        except BaseException:
            host.kill()
            connection.close()
            raise
        return cls(host, connection, description)

    def submit(self, request: Request) -> int:
        """Hand over a request; returns the command's number. Never blocks; bad requests are rejected."""
        self._command().submits.append(request)
        return self._number

    def abort(self, handle: int) -> int:
        """End a request; unknown and finished handles are ignored. Returns the number of this command."""
        self._command().aborts.append(handle)
        return self._number

    def drain(self) -> int:
        """Have everything unfinished returned, and later submissions rejected, for good."""
        self._command().drain = True
        return self._number

    def request_kv_snapshot(self) -> int:
        """Have a report carry the digests of all reusable blocks."""
        self._command().kv_snapshot = True
        return self._number

    async def reports(self) -> AsyncIterator[StepReport]:
        """Reports as they come; for one consumer. Ends after `close`; raises EngineDied when it is gone."""
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            if self._ended is not None:
                raise self._ended
            if self._closing:
                return
            self._news.clear()
            await self._news.wait()

    async def close(self, timeout_s: float = 5.0) -> None:
        """End the engine: politely for `timeout_s`, then by force. Idempotent."""
        if not self._closing:
            self._command().close = True
            self._closing = True
            self._news.set()
        await asyncio.to_thread(self._host.join, timeout_s)
        self._host.kill()
        self._outgoing.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, timeout_s)
        self._connection.close()

    def _command(self) -> Commands:
        if not (self._turn.last_number or self._closing):
            self._loop.call_soon(self._flush)
        self._number += 1
        self._turn.last_number = self._number
        return self._turn

    def _flush(self) -> None:
        self._outgoing.put(self._turn)
        self._turn = Commands()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reader notices the same end
            while (commands := self._outgoing.get()) is not None:
                self._connection.send(commands)

    def _read(self) -> None:
        ended: EngineError | None = None
        with contextlib.suppress(EOFError, OSError):
            while ended is None:
                message = self._connection.recv()
                if isinstance(message, EngineError):
                    ended = message
                else:
                    self._tell(message)
        self._tell(ended or EngineDied(f"the engine ended unexpectedly ({self._host.epitaph()})"))

    def _tell(self, message: StepReport | EngineError) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._hear, message)

    def _hear(self, message: StepReport | EngineError) -> None:
        if isinstance(message, StepReport):
            self._arrived.append(message)
        elif not self._closing:
            self._ended = message
        self._news.set()


async def _first_message(connection: Connection, host: EngineHost) -> EngineDescription:
    try:
        message = await asyncio.to_thread(connection.recv)
    except (EOFError, OSError) as error:
        raise EngineDied(f"the engine ended while it was loading ({host.epitaph()})") from error
    if isinstance(message, EngineError):
        raise message
    assert isinstance(message, EngineDescription)
    return message
