"""Our engine behind one stream a request, without sessions: `python -m bench.relay.engine_worker`."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from headrace.v1 import router_pb2

from bench.relay import busy
from bench.relay.stream_worker import Reply, delta, finished, serve
from services.worker.engine.client import EngineClient
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling

GREEDY = Sampling(ignore_eos=True)


def to_request(asked: router_pb2.GenerateRequest, handle: int) -> Request:
    """As the engine takes it."""
    return Request(
        handle=handle,
        prompt=np.array(asked.token_ids.ids, np.int32),
        max_tokens=asked.max_tokens,
        arrival_s=time.monotonic(),
        sampling=GREEDY,
        latency_class=LatencyClass.INTERACTIVE,
    )


class EngineStreams:
    """One queue and one stream a request."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._handles = itertools.count(1)
        self._open: dict[int, asyncio.Queue[Reply | None]] = {}

    async def Generate(self, request: router_pb2.GenerateRequest, _: Any) -> AsyncIterator[Reply]:
        """One Delta a step, then Finished."""
        handle = next(self._handles)
        queue = self._open[handle] = asyncio.Queue()
        self._engine.submit(to_request(request, handle))
        try:
            while (reply := await queue.get()) is not None:
                yield reply
            yield finished(request)
        finally:
            if self._open.pop(handle, None) is not None:
                self._engine.abort(handle)

    async def listen(self) -> None:
        """Hands on what the engine reports, for ever. Raises EngineDied."""
        async for report in self._engine.reports():
            for handle, index, token in report.outputs.plain():
                if (queue := self._open.get(handle)) is not None:
                    queue.put_nowait(delta(index, [token]))
            for ended in report.terminals.finished:
                if (queue := self._open.pop(ended.handle, None)) is not None:
                    queue.put_nowait(None)


async def _serve(settings: EngineSettings, *, is_busy: bool) -> None:
    engine = await EngineClient.start(settings, loader=busy.load if is_busy else load_engine)
    streams = EngineStreams(engine)
    serving = await serve(streams.Generate)
    try:
        await streams.listen()
    finally:
        await serving.stop(None)


def main() -> None:
    """Serve until ended."""
    flags = argparse.ArgumentParser(description="A simulated engine behind one stream a request.")
    flags.add_argument("--model", type=Path, required=True)
    flags.add_argument("--calibration", type=Path, required=True)
    flags.add_argument("--max-seqs", type=int, default=256)
    flags.add_argument("--busy", action="store_true", help="steps as in bench.relay.busy")
    given = flags.parse_args()
    settings = EngineSettings(
        model=given.model,
        engine="simulated",
        simulated_calibration=given.calibration,
        max_seqs=given.max_seqs,
    )
    uvloop.run(_serve(settings, is_busy=given.busy))


if __name__ == "__main__":
    main()
