"""A step takes what passes from one to the next: the loop's own work counts, a pause before it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from services.worker.engine import loop
from services.worker.engine.base import LoadedEngine
from services.worker.engine.client import EngineClient
from services.worker.engine.report import Work
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import Request
from services.worker.scheduler.step import Capabilities, Step
from tests.support.engines import SPEC, describe
from tests.support.fake_runner import VOCAB, FakePending, FakeRunner
from tests.support.waiting import eventually

PATIENCE_S = 30.0
PAUSE_S = 1000.0


class Clock:
    """Goes on by a second with each step and by a quarter with each look at it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 0.25
        return self.now_s


class TimedRunner(FakeRunner):
    """Notes when each step began, and idle moments."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(SPEC, Capabilities(run_ahead=0))
        self.began_s: list[float] = []
        self.idle_moments = 0
        self._clock = clock

    def improve(self) -> bool:
        self.idle_moments += 1
        return True

    def launch(self, step: Step) -> FakePending:
        self.began_s.append(self._clock.now_s)
        self._clock.now_s += 1.0
        return super().launch(step)


async def test_the_work_between_steps_counts_and_the_pause_before_them_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=clock.monotonic))
    runner = TimedRunner(clock)
    engine = await start(runner)
    try:
        async with asyncio.timeout(PATIENCE_S):
            first = await work_of(engine, 1)
            assert first.busy_s > runner.began_s[-1] - runner.began_s[0] + 1.0
            begun, seen = len(runner.began_s), runner.idle_moments
            await eventually(lambda: runner.idle_moments > seen, "an idle moment")
            clock.now_s += PAUSE_S
            second = (await work_of(engine, 2)).since(first)
    finally:
        await engine.close()
    assert runner.began_s[-1] - runner.began_s[begun] + 1.0 < second.busy_s < PAUSE_S


async def start(runner: FakeRunner) -> EngineClient:
    engine = LoadedEngine(runner, describe(SPEC, runner.capabilities))
    return await EngineClient.start(
        EngineSettings(model=Path("/nowhere")), loader=lambda _: engine, in_process=True
    )


async def work_of(engine: EngineClient, handle: int) -> Work:
    """What had been done when a request was over."""
    prompt = np.random.default_rng(handle).integers(8, VOCAB, 40).astype(np.int32)
    engine.submit(Request(handle=handle, prompt=prompt, max_tokens=30, arrival_s=0.0))
    async for report in engine.reports():
        if any(end.handle == handle for end in report.terminals.finished):
            return report.progress.work
    raise AssertionError("the engine ended")
