"""A worker gives its engine up when that gets nowhere, and for nothing else."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from services.worker.engine.client import EngineClient
from services.worker.engine.report import Progress, StepReport
from services.worker.engine.settings import EngineSettings
from services.worker.engine.watch import FIRST_S, FIRST_STEPS, MOMENT_S, HangWatch
from services.worker.scheduler.budget import PRIOR
from services.worker.scheduler.events import Credits, Load, Room
from tests.support import engines
from tests.support.waiting import eventually

CREDITS = Credits(0, 0, 0, {}, Room(0, 0, 0))
MOST = 10_000


def report(
    steps: int = 100, *, work: bool = True, step_s: float = 0.01, waiting_tokens: int = 0
) -> StepReport:
    progress = Progress(steps, work, 1.0, 4, 4, step_s)
    load = Load(4, 0, waiting_tokens, 60, 0, 4, 64)
    return StepReport(last_command=1, load=load, credits=CREDITS, progress=progress, step_model=PRIOR)


def gives_up_after(
    said: StepReport, *, beats: bool = True, elapsed_s: float = 1.0, stopped: bool = False
) -> int:
    """Moments until it hangs; MOST when it does not."""
    watch, heard = HangWatch(30.0, 64, 8192), 0
    for moment in range(MOST):
        heard += beats
        if watch.tick(said, said.progress, heard, 1.0, stopped=stopped):
            return moment
    return MOST


def test_work_without_a_finished_step_is_a_hang_after_that_time() -> None:
    assert gives_up_after(report()) == 31


def test_an_engine_that_says_nothing_hangs_whatever_it_said_before() -> None:
    assert gives_up_after(report(work=False), beats=False) == 31


def test_rest_is_no_hang() -> None:
    assert gives_up_after(report(work=False)) == MOST


def test_steps_that_finish_begin_the_time_anew() -> None:
    watch, heard = HangWatch(30.0, 64, 8192), count(1)
    for steps in range(100, 200):
        said = report(steps)
        for _ in range(20):
            assert not watch.tick(said, said.progress, next(heard), 1.0, stopped=False)


def test_first_steps_may_take_as_long_as_loading() -> None:
    assert gives_up_after(report(0)) == gives_up_after(report(FIRST_STEPS - 1)) == FIRST_S + 1
    assert gives_up_after(report(FIRST_STEPS)) == 31


def test_long_steps_have_more_time() -> None:
    assert gives_up_after(report(step_s=2.0)) == 201
    slow = replace(
        report(waiting_tokens=8000), step_model=PRIOR._replace(coefficients=(0.0, 0.01, 0.0, 0.0, 0.0))
    )
    assert gives_up_after(slow) > 10 * 80.0, "80 s is what its prompts can take in one step"


def test_an_engine_that_is_stopped_hangs_never() -> None:
    assert gives_up_after(report(), stopped=True) == MOST


@pytest.mark.parametrize("elapsed_s", [60.0, 3600.0])
def test_a_worker_that_was_stopped_goes_on_where_it_was(elapsed_s: float) -> None:
    watch, said = HangWatch(30.0, 64, 8192), report()
    for heard in range(10):
        assert not watch.tick(said, said.progress, heard, 1.0, stopped=False)
    assert not watch.tick(said, said.progress, 11, elapsed_s, stopped=False)
    assert watch.stuck_s <= 9.0 + MOMENT_S


async def test_a_process_that_is_stopped_is_known_as_such() -> None:

    client = await EngineClient.start(EngineSettings(model=Path("/nowhere")), loader=engines.load_fake)
    host = client._host
    try:
        pid = host._process.pid  # type: ignore[attr-defined]
        assert not host.stopped()
        os.kill(pid, signal.SIGSTOP)
        await eventually(host.stopped, "it is stopped")
        os.kill(pid, signal.SIGCONT)
    finally:
        await client.close()
    assert not host.stopped()
