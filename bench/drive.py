"""Drives an engine in its own process through its client: at a fixed concurrency, or by the jobs' times.

async with started(EngineSettings(model=...)) as engine:
    ran = await engine.run(jobs, concurrency=16)     # ran.tracks, ran.cpu, ran.steps
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from bench.cpu_time import cpu_s, engine_pid, own_cpu_s
from bench.tracks import Track
from bench.workload import Job
from services.worker.engine.base import EngineDescription
from services.worker.engine.client import EngineClient
from services.worker.engine.report import StepReport
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import Request

Watcher = Callable[[StepReport], None]


class Spent(NamedTuple):
    """What a run took."""

    wall_s: float
    engine_cpu_s: float
    own_cpu_s: float  # of the process that drives it


@dataclass(slots=True)
class Ran:
    """One run."""

    tracks: list[Track]
    spent: Spent
    steps: int


@dataclass(slots=True)
class Engine:
    """A started engine; one run at a time."""

    client: EngineClient
    pid: int
    reports: AsyncIterator[StepReport]
    _handles: Iterable[int] = field(default_factory=count)
    _steps: int = 0  # finished before the last report

    @property
    def description(self) -> EngineDescription:
        return self.client.description

    async def run(
        self, jobs: Sequence[Job], concurrency: int | None = None, watch: Watcher | None = None
    ) -> Ran:
        """All jobs to their ends: `concurrency` at a time, or each at its time. `watch` sees each report."""
        began = self._now()
        flight = Flight(self, watch)
        feeding = asyncio.create_task(_feed(flight, jobs, concurrency))
        try:
            await flight.until(lambda: feeding.done() and not flight.open)
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        ended = self._now()
        spent = Spent(*(after - before for before, after in zip(began[:3], ended[:3], strict=True)))
        return Ran(flight.tracks, spent, ended[3] - began[3])

    def next_handle(self) -> int:
        """One that no request of this engine has had."""
        return next(iter(self._handles))

    def saw(self, report: StepReport) -> None:
        """Note how far it is."""
        self._steps = report.progress.finished_steps

    def _now(self) -> tuple[float, float, float, int]:
        return time.monotonic(), cpu_s(self.pid), own_cpu_s(), self._steps


class Flight:
    """Requests under way, and the tracks of all that were submitted."""

    def __init__(self, engine: Engine, watch: Watcher | None = None) -> None:
        self.open: dict[int, Track] = {}
        self.tracks: list[Track] = []
        self._engine = engine
        self._watch = watch
        self._landed = asyncio.Condition()

    def submit(self, job: Job, **more: object) -> Track:
        """Hand a request over now."""
        now = time.monotonic()
        request = job.request(self._engine.next_handle(), now, **more)
        return self.send(request)

    def send(self, request: Request) -> Track:
        """Hand a request over as it is."""
        track = Track(request.arrival_s, request.latency_class, len(request.prompt))
        self.open[request.handle] = track
        self.tracks.append(track)
        self._engine.client.submit(request)
        return track

    def abort(self) -> None:
        """End all that is under way."""
        for handle in self.open:
            self._engine.client.abort(handle)

    async def room(self, concurrency: int) -> None:
        """Wait until fewer than so many are under way."""
        async with self._landed:
            await self._landed.wait_for(lambda: len(self.open) < concurrency)

    async def until(self, done: Callable[[], bool]) -> None:
        """Read reports until it is done. Raises EngineDied, and RuntimeError where a request is refused."""
        async for report in self._engine.reports:
            await self._note(report)
            if done():
                return

    async def _note(self, report: StepReport) -> None:
        now = time.monotonic()
        self._engine.saw(report)
        if self._watch is not None:
            self._watch(report)
        for news in report.outputs:
            if (track := self.open.get(news.handle)) is not None:
                track.token_s.append(now)
        if report.terminals.rejected:
            raise RuntimeError(f"refused: {report.terminals.rejected[0].message}")
        if report.terminals.finished:
            await self._land(report)

    async def _land(self, report: StepReport) -> None:
        for finished in report.terminals.finished:
            if (track := self.open.pop(finished.handle, None)) is not None:
                track.finished = finished
        async with self._landed:
            self._landed.notify_all()


@asynccontextmanager
async def started(settings: EngineSettings) -> AsyncIterator[Engine]:
    """An engine in its own process, closed at the end. Raises EngineLoadError."""
    client = await EngineClient.start(settings)
    try:
        yield Engine(client, engine_pid(), client.reports())
    finally:
        await client.close()


async def _feed(flight: Flight, jobs: Sequence[Job], concurrency: int | None) -> None:
    began = time.monotonic()
    for job in jobs:
        if concurrency is not None:
            await flight.room(concurrency)
        elif (left_s := began + job.at_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        flight.submit(job)
