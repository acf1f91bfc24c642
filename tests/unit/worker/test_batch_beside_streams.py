"""A long batch prompt beside streams that somebody reads, in virtual time with known step times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench.virtual import Story, VirtualWorker
from services.worker.engine.settings import EngineSettings
from services.worker.engine.simulated.clock import VirtualClock
from services.worker.engine.simulated.load import load_simulated_engine
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.scheduler import Scheduler

STREAM_S, SUBMITTED_S = 20.0, 5.0
# A CPU with a small model: one decode takes 6 ms, four 8 ms; 5,000 prompt tokens a second.
STEP_TIMES = "[step]\nstep_s = 5e-3\ntoken_s = 2e-4\nsequence_s = 4e-4\ncontext_s = 1e-6\n"


def _worker(directory: Path) -> VirtualWorker:
    (directory / "cpu.toml").write_text(STEP_TIMES)
    clock = VirtualClock()
    settings = EngineSettings(
        model=directory, engine="simulated", simulated_calibration=directory / "cpu.toml"
    )
    engine = load_simulated_engine(settings, clock)
    facts = ModelFacts(engine.description.vocab_size, engine.description.eos_ids, bytes(32))
    scheduler = Scheduler(engine.runner.spec, SchedulerSettings(), facts, engine.runner.capabilities)
    return VirtualWorker(scheduler, engine.runner, clock)


def _request(
    handle: int, prompt: int, output: int, latency_class: LatencyClass, at_s: float = 0.0
) -> Request:
    return Request(
        handle=handle,
        prompt=np.full(prompt, 1 + handle, np.int32),
        max_tokens=output,
        arrival_s=at_s,
        sampling=Sampling(ignore_eos=True),
        latency_class=latency_class,
    )


def _gaps_s(seen: dict[int, list[float]], story: Story, until_s: float) -> tuple[list[float], list[float]]:
    """Between a stream's tokens: before the batch prompt came, and beside it."""
    times = [at_s for at_s in seen[story.request.handle] if at_s <= until_s]
    pairs = list(pairwise(times))
    idle = [later - earlier for earlier, later in pairs if later <= SUBMITTED_S]
    return idle, [later - earlier for earlier, later in pairs if earlier >= SUBMITTED_S]


@pytest.mark.parametrize("streams", [1, 4])
def test_a_batch_prompt_stretches_the_steps_of_streams_at_most_threefold(
    tmp_path: Path, streams: int
) -> None:
    worker = _worker(tmp_path)
    worker.submit(_request(handle, 128, 4000, LatencyClass.INTERACTIVE) for handle in range(streams))
    worker.submit([_request(100, 4096, 1, LatencyClass.BATCH, SUBMITTED_S)])
    seen: dict[int, list[float]] = {handle: [] for handle in range(streams)}
    while worker.now_s < STREAM_S:
        counts = {
            handle: len(worker.stories[handle].token_ids) for handle in seen if handle in worker.stories
        }
        list(worker.run(worker.now_s + 1e-4))
        for handle, count in counts.items():
            seen[handle] += [worker.now_s] * (len(worker.stories[handle].token_ids) - count)
    guest = worker.stories[100]
    assert guest.last_s is not None, "the batch prompt was never computed"
    assert 4096 / (guest.last_s - SUBMITTED_S) > 1500, "hardly anything was computed beside the streams"
    for handle in seen:
        idle, beside = _gaps_s(seen, worker.stories[handle], guest.last_s)
        assert np.percentile(beside, 99) <= 3.0 * np.percentile(idle, 99)
