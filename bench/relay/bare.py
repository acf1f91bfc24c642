"""The engine alone: driven through its client by this process, without gRPC."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench.cpu_time import engine_pid
from bench.relay.clients import Seen, request
from bench.relay.engine_worker import to_request
from bench.relay.processes import pin
from services.worker.engine.client import EngineClient
from services.worker.engine.load import EngineLoader
from services.worker.engine.settings import EngineSettings


class BareEngine:
    """Runs requests as a client of a mesh would, with nothing between."""

    def __init__(self, client: EngineClient, prompt: Sequence[int]) -> None:
        self._client = client
        self._prompt = prompt
        self._handles = itertools.count(1)
        self._open: dict[int, tuple[Seen, asyncio.Future[None]]] = {}
        self._at_s: dict[int, float] = {}  # last token, or the call

    async def stream(self, tokens: int, seen: Seen) -> None:
        """One request to its end."""
        handle = next(self._handles)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[handle] = seen, ended
        self._at_s[handle] = time.monotonic()
        self._client.submit(to_request(request(self._prompt, tokens), handle))
        await ended

    async def listen(self) -> None:
        """Takes reports, for ever. Raises EngineDied."""
        async for report in self._client.reports():
            now_s = time.monotonic()
            for handle, index, _ in report.outputs.plain():
                seen = self._open[handle][0]
                seen.message(1, self._at_s[handle], now_s, first=index == 0)
                self._at_s[handle] = now_s
            for finished in report.terminals.finished:
                ended = self._open.pop(finished.handle)[1]
                if not ended.done():  # nobody waits any more
                    ended.set_result(None)
                del self._at_s[finished.handle]


@asynccontextmanager
async def bare_engine(
    settings: EngineSettings, loader: EngineLoader, prompt: Sequence[int], core: int
) -> AsyncIterator[BareEngine]:
    """A started engine on a core of its own. Raises EngineLoadError."""
    client = await EngineClient.start(settings, loader=loader)
    pin(engine_pid(), core)
    engine = BareEngine(client, prompt)
    listening = asyncio.create_task(engine.listen())
    try:
        yield engine
    finally:
        await client.close()
        await asyncio.gather(listening, return_exceptions=True)
