"""The benchmark's run over a real engine process: everything asked for is done, and counted once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.calibrate import DIRECTORY
from bench.cpu_time import cpu_s, own_cpu_s
from bench.drive import started
from bench.outcome import outcome_of
from bench.workload import Lengths, Work, offline, online
from services.worker.engine.errors import EngineLoadError
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.request import LatencyClass

WORK = Work(Lengths(4, 40), Lengths(2, 12), vocab=1000)
SIMULATED = EngineSettings(
    model=Path("none"), engine="simulated", simulated_calibration=DIRECTORY / "h100-0.6b.toml"
)


@pytest.mark.parametrize("concurrency", [1, 5, None])
async def test_each_request_runs_to_its_length(concurrency: int | None) -> None:
    jobs = (
        online(WORK, 100.0, 0.2, 3, {LatencyClass.INTERACTIVE: 1.0, LatencyClass.BATCH: 1.0})
        if concurrency is None
        else offline(WORK, 20, 3)
    )
    async with started(SIMULATED) as engine:
        for _ in range(2):  # the second finds the engine as the first left it
            ran = await engine.run(jobs, concurrency)
            assert [len(track.token_s) for track in ran.tracks] == [job.output_tokens for job in jobs]
            assert [track.latency_class for track in ran.tracks] == [job.latency_class for job in jobs]
            assert ran.steps >= max(job.output_tokens for job in jobs)
            if concurrency == 1:
                assert ran.steps == sum(job.output_tokens for job in jobs)
            outcome = outcome_of(ran, None)
            total = sum(job.output_tokens for job in jobs)
            assert outcome.tokens_per_s == pytest.approx(total / ran.spent.wall_s)
            assert outcome.mbu is None


async def test_a_refused_request_ends_the_run_with_its_reason() -> None:
    too_long = offline(Work(Lengths(50_000, 50_000), Lengths(1, 1), vocab=1000), 1, 0)
    async with started(SIMULATED) as engine:
        with pytest.raises(RuntimeError, match="the context ends at"):
            await engine.run(too_long, 1)


async def test_an_engine_that_cannot_load_says_why() -> None:
    with pytest.raises(EngineLoadError):
        async with started(EngineSettings(model=Path("/nowhere"))):
            pass


def test_cpu_time_of_this_process_is_the_same_by_both_clocks() -> None:
    assert cpu_s(os.getpid()) == pytest.approx(own_cpu_s(), abs=0.1)
