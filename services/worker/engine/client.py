"""The asyncio side of an engine: submit, abort, and one report a step, from one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from typing import Self

from services.worker.engine.base import EngineDescription
from services.worker.engine.errors import EngineDied, EngineError, EngineHangs
from services.worker.engine.load import EngineLoader, load_engine
from services.worker.engine.pipe import EnginePipe
from services.worker.engine.process import EngineHost, host_engine
from services.worker.engine.report import Commands, Progress, StepReport, TokenReport
from services.worker.engine.settings import EngineSettings
from services.worker.engine.watch import TICK_S, HangWatch
from services.worker.scheduler.request import Merge, Request

Hearer = Callable[[StepReport | TokenReport], None]


class EngineClient:
    """A running engine. All methods belong to the event loop that started it; see the package's docstring."""

    def __init__(self, host: EngineHost, description: EngineDescription) -> None:
        self.description = description
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._turn = Commands()
        self._arrived: deque[StepReport | TokenReport] = deque()
        self._last: StepReport | None = None
        self._heard = 0
        self._progress = Progress(0, False, 0.0, 0, 0, 0.0)
        self._news = asyncio.Event()
        self._hearer: Hearer | None = None
        self._last_words: Exception | None = None
        self._lost = False
        self._closing = False
        self._pipe: EnginePipe  # from `start` on

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
        client = cls(host, description)
        client._pipe = await EnginePipe.over(connection, client._hear, client._hear_end)
        return client

    def submit(self, request: Request) -> int:
        """Hand over a request; returns the command's number. Never blocks; bad requests are rejected."""
        self._command().submits.append(request)
        return self._number

    def abort(self, handle: int) -> int:
        """End a request; unknown and finished handles are ignored. Returns the number of this command."""
        self._command().aborts.append(handle)
        return self._number

    def merge(self, handle: int, merge: Merge | None) -> int:
        """Let the tokens of a request go together as `merge` says. Returns the number of this command."""
        self._command().merges.append((handle, merge))
        return self._number

    def drain(self) -> int:
        """Have everything unfinished returned, and later submissions rejected, for good."""
        self._command().drain = True
        return self._number

    def request_kv_snapshot(self) -> int:
        """Have a report carry the digests of all reusable blocks."""
        self._command().kv_snapshot = True
        return self._number

    async def listen(self, hear: Hearer) -> None:
        """Has `hear` called with each report at the moment it comes, also with TokenReports.

        In the place of `reports`: ends as that does, and raises what `hear` raises.
        """
        self._hearer = hear
        try:
            async for report in self.reports():
                hear(report)
        finally:
            self._hearer = None

    async def reports(self) -> AsyncIterator[StepReport]:
        """Reports as they come; for one consumer. Ends after `close`; raises EngineDied when it is gone."""
        while True:
            while self._arrived:
                yield self._whole(self._arrived.popleft())
            if self._closing:
                return
            if self._last_words is not None:
                raise self._last_words
            if self._lost:
                epitaph = await asyncio.to_thread(self._host.epitaph)
                raise EngineDied(f"the engine ended unexpectedly ({epitaph})")
            self._news.clear()
            await self._news.wait()

    async def watch(self, hang_s: float, max_chunk: int) -> None:
        """Never returns. Raises EngineHangs, with the engine killed, when no step has finished for `hang_s`.

        It has longer where its load can mean that; see `HangWatch`.
        """
        watch = HangWatch(hang_s, self.description.spec.block_size, max_chunk)
        before_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            elapsed_s, stopped = time.monotonic() - before_s, self._host.stopped()
            before_s += elapsed_s
            if self._last is None:
                continue
            if watch.tick(self._last, self._progress, self._heard, elapsed_s, stopped=stopped):
                self._host.kill()
                raise EngineHangs(f"no step has finished for {watch.stuck_s:.0f} s")

    async def close(self, timeout_s: float = 5.0) -> None:
        """End the engine: politely for `timeout_s`, then by force. Idempotent."""
        if not self._closing:
            self._command().close = True
            self._closing = True
            self._news.set()
        await asyncio.to_thread(self._host.join, timeout_s)
        self._host.kill()
        self._pipe.close()

    def _command(self) -> Commands:
        if not (self._turn.last_number or self._closing):
            self._loop.call_soon(self._flush)
        self._number += 1
        self._turn.last_number = self._number
        return self._turn

    def _flush(self) -> None:
        self._pipe.send(self._turn)
        self._turn = Commands()

    def _hear(self, message: StepReport | TokenReport | EngineError) -> None:
        if isinstance(message, EngineError):
            self._last_words = message
            self._news.set()
            return
        self._heard += 1
        self._progress = message.progress
        if self._hearer is None or self._arrived:
            self._arrived.append(message)
            self._news.set()
            return
        if isinstance(message, StepReport):
            self._last = message
        try:
            self._hearer(message)
        except Exception as error:
            self._last_words = error
            self._news.set()

    def _whole(self, report: StepReport | TokenReport) -> StepReport:
        if isinstance(report, TokenReport):
            assert self._last is not None, "a StepReport comes first"
            report = self._last.then(report)
        self._last = report
        return report

    def _hear_end(self) -> None:
        self._lost = True
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
