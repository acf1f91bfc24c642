"""The loop gives a runner idle moments to improve itself, and takes none from requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from services.worker.engine.base import LoadedEngine
from services.worker.engine.client import EngineClient
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import Request
from services.worker.scheduler.step import Capabilities, Step
from tests.support.engines import SPEC, describe
from tests.support.fake_runner import VOCAB, FakePending, FakeRunner
from tests.support.waiting import eventually

PATIENCE_S = 30.0


class ImprovingRunner(FakeRunner):
    """Has three things to improve; notes what came in which order."""

    def __init__(self) -> None:
        super().__init__(SPEC, Capabilities(run_ahead=1))
        self.story: list[str] = []

    def launch(self, step: Step) -> FakePending:
        self.story.append("step")
        return super().launch(step)

    def improve(self) -> bool:
        self.story.append("improve")
        return self.story.count("improve") < 3


async def test_a_runner_improves_itself_when_idle_and_is_left_alone_when_done() -> None:
    runner = ImprovingRunner()
    engine = await start(runner)
    await eventually(lambda: runner.story.count("improve") == 3, "improvements")
    async with asyncio.timeout(PATIENCE_S):
        for handle in (1, 2):  # an idle moment follows each
            await answer(engine, handle)
    await engine.close()
    assert runner.story.count("improve") == 3


async def test_no_improvement_while_a_request_runs() -> None:
    runner = ImprovingRunner()
    engine = await start(runner)
    async with asyncio.timeout(PATIENCE_S):
        await answer(engine, 1)
    await engine.close()
    first, last = runner.story.index("step"), len(runner.story) - runner.story[::-1].index("step")
    assert set(runner.story[first:last]) == {"step"}


async def start(runner: FakeRunner) -> EngineClient:
    engine = LoadedEngine(runner, describe(SPEC, runner.capabilities))
    return await EngineClient.start(
        EngineSettings(model=Path("/nowhere")), loader=lambda _: engine, in_process=True
    )


async def answer(engine: EngineClient, handle: int) -> None:
    prompt = np.random.default_rng(handle).integers(8, VOCAB, 40).astype(np.int32)
    engine.submit(Request(handle=handle, prompt=prompt, max_tokens=30, arrival_s=0.0))
    async for report in engine.reports():
        if any(end.handle == handle for end in report.terminals.finished):
            return
