"""Our engine in its own process, as a worker holds it, and nothing else of the mesh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve
from services.worker.engine.client import EngineClient
from services.worker.engine.report import StepReport
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import FinishReason, LatencyClass, Request, Sampling

_GREEDY = Sampling(ignore_eos=True)


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """An engine with the settings that a worker has by default, but for numbers, threads and device."""
    chosen: dict[str, Any] = {"quantization" if config.dtype == "int8" else "dtype": config.dtype}
    settings = EngineSettings(model=Path(config.model), device="cpu", threads=config.threads, **chosen)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        engine = runner.run(EngineClient.start(settings))
        handles = count()
        try:
            yield lambda job: runner.run(_run(engine, job, handles))
        finally:
            runner.run(engine.close())


@dataclass
class _Flights:
    """Requests under way, by handle; the next prompt goes in when one ends."""

    engine: EngineClient
    job: Job
    handles: Iterator[int]
    waiting: list[list[int]]
    answers: dict[int, Answer] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)

    def fill(self) -> None:
        """Keeps as many under way as the job says."""
        while self.waiting and len(self.running) < self.job.streams:
            handle = next(self.handles)
            self.answers[handle] = Answer()
            self.running.add(handle)
            self.engine.submit(_request(handle, self.waiting.pop(0), self.job.output_tokens))

    def take(self, report: StepReport) -> None:
        """One step's news. Raises when a request did not end by its length."""
        for handle, _, token in report.outputs.plain():
            self.answers[handle].arrived([token])
        for finished in report.terminals.finished:
            if finished.reason is not FinishReason.LENGTH:
                raise RuntimeError(f"a request ended by {finished.reason.name}: {finished.message}")
            self.running.discard(finished.handle)
        for rejected in report.terminals.rejected:
            raise RuntimeError(f"a request was rejected: {rejected.message}")


async def _run(engine: EngineClient, job: Job, handles: Iterator[int]) -> list[Answer]:
    flights = _Flights(engine, job, handles, list(job.prompts))
    flights.fill()
    async for report in engine.reports():
        flights.take(report)
        flights.fill()
        if not flights.running:
            break
    return list(flights.answers.values())


def _request(handle: int, prompt: list[int], output_tokens: int) -> Request:
    return Request(
        handle=handle,
        prompt=np.array(prompt, np.int32),
        max_tokens=output_tokens,
        arrival_s=time.monotonic(),
        sampling=_GREEDY,
        latency_class=LatencyClass.INTERACTIVE,  # what the router infers for a streamed answer
    )


if __name__ == "__main__":
    serve(start, ("headrace", "torch"))
