"""A batch request makes progress within its bound of each tier, whatever interactive work never ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from services.worker.scheduler.policy import ClassTargets, SchedulerSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.step import Capabilities, KVSpec
from tests.support.drive import Drive
from tests.support.fake_runner import VOCAB, FakeRunner

BOUND_S = 0.6  # batch_ageing_s here; a step takes 0.01 s
TIERS = 2  # that a batch request has above it
LATEST_S = TIERS * BOUND_S + 0.2  # to the first step with it after its last, with what must end before it
BATCH_HANDLE = 0
TIGHT = ClassTargets(ttft_s=0.5, tpot_s=0.011)  # decodes alone fill the step: no batch prompt passes the gate


class Load(NamedTuple):
    """What limits, and how much interactive work always is there."""

    blocks: int
    slots: int
    prompt: int
    outputs: int
    standing: int  # unfinished interactive requests
    latency_class: LatencyClass = LatencyClass.INTERACTIVE
    settings: Mapping[str, Any] = MappingProxyType({})


LOADS = {
    "slots are full": Load(blocks=200, slots=4, prompt=40, outputs=20, standing=12),
    "blocks are full": Load(blocks=24, slots=16, prompt=60, outputs=40, standing=12),
    "prompts fill every step": Load(
        blocks=400, slots=32, prompt=200, outputs=2, standing=24, settings={"max_chunk": 100}
    ),
    "decodes fill every step": Load(
        blocks=400,
        slots=32,
        prompt=4,
        outputs=200,
        standing=12,
        settings={"targets": {**SchedulerSettings().targets, LatencyClass.INTERACTIVE: TIGHT}},
    ),
    "standard work": Load(
        blocks=200, slots=4, prompt=40, outputs=20, standing=12, latency_class=LatencyClass.STANDARD
    ),
}


class StandingLoad:
    """Keeps the same number of requests unfinished."""

    def __init__(self, drive: Drive, load: Load) -> None:
        self._drive = drive
        self._load = load
        self._handles: list[int] = []
        self._last = BATCH_HANDLE

    def top_up(self) -> None:
        self._handles = [each for each in self._handles if not self._drive.stories[each].terminals]
        while len(self._handles) < self._load.standing:
            self._last += 1
            self._handles.append(self._last)
            load = self._load
            self._drive.add(
                request(self._last, load.prompt, load.outputs, load.latency_class, self._drive.now)
            )


def request(handle: int, length: int, outputs: int, latency_class: LatencyClass, now: float) -> Request:
    prompt = np.random.default_rng(handle).integers(8, VOCAB, length).astype(np.int32)
    return Request(
        handle=handle,
        prompt=prompt,
        max_tokens=outputs,
        arrival_s=now,
        sampling=Sampling(ignore_eos=True),
        latency_class=latency_class,
        tenant=b"batch" if handle == BATCH_HANDLE else b"",
    )


def drive_under(load: Load, run_ahead: int) -> tuple[Drive, StandingLoad]:
    spec = KVSpec(block_size=16, num_blocks=load.blocks, max_seqs=load.slots, max_len=384)
    settings = SchedulerSettings(batch_ageing_s=BOUND_S, **load.settings)
    drive = Drive(FakeRunner(spec, Capabilities(run_ahead=run_ahead)), settings)
    return drive, StandingLoad(drive, load)


def steps_with_batch_s(drive: Drive, others: StandingLoad) -> list[float]:
    """When steps with the batch request began, until it ends."""
    times = []
    while not drive.stories[BATCH_HANDLE].terminals:
        others.top_up()
        sequence, before = drive.scheduler._sequences[BATCH_HANDLE], drive.now
        progress = sequence.last_step
        drive.turn()
        if sequence.last_step != progress:
            times.append(before)
        assert drive.now < 60.0
    return times


@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_batch_work_progresses_under_standing_load(load: Load, began: bool, run_ahead: int) -> None:
    drive, others = drive_under(load, run_ahead)
    if not began:
        for _ in range(40):  # the engine is as full as it can be, and knows how long its steps take
            others.top_up()
            drive.turn()
    arrival_s = drive.now
    drive.add(request(BATCH_HANDLE, 100, 30, LatencyClass.BATCH, arrival_s))
    if began:
        for _ in range(3):
            drive.turn()
    times = steps_with_batch_s(drive, others)
    gaps = np.diff([arrival_s, *times])
    assert gaps.max() <= LATEST_S
