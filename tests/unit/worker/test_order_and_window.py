"""What routers rely on: their order is kept, and credit is what steps have room for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import Capabilities, KVSpec, Sampled, Step

MODEL = StepModelState((1e-3, 1e-5, 0.0, 0.0, 2e-4), 1.0, 0.0, 1000)  # 100,000 prompt tokens a second


def scheduler(settings: SchedulerSettings | None = None) -> Scheduler:
    spec = KVSpec(block_size=64, num_blocks=4096, max_seqs=256, max_len=65_536)
    facts = ModelFacts(32_000, (2,), bytes(32))
    return Scheduler(spec, settings or SchedulerSettings(), facts, Capabilities(), prior=MODEL)


def request(handle: int, prompt: int, *, arrival_s: float = 0.0, ttft_s: float | None = None) -> Request:
    return Request(
        handle=handle,
        prompt=np.full(prompt, 7, np.int32),
        max_tokens=100,
        arrival_s=arrival_s,
        sampling=Sampling(ignore_eos=True),
        latency_class=LatencyClass.INTERACTIVE,
        ttft_target_s=ttft_s,
    )


def run(owner: Scheduler, now: float) -> Step | None:
    step = owner.plan(now)
    if step is not None:
        tokens = np.where(step.samples, 5, -1).astype(np.int32)
        a, b, c, d, e = MODEL.coefficients
        seconds = float(np.dot((a, b, c, d, e), step.cost))
        owner.commit(step, Sampled(tokens), now + seconds, seconds)
    return step


def test_who_waited_at_a_router_does_not_overtake() -> None:
    owner = scheduler()
    owner.add(request(1, 20_000, arrival_s=10.0), 10.0)
    owner.add(request(2, 20_000, arrival_s=2.0), 10.0)
    step = owner.plan(10.0)
    assert step is not None
    assert [init.prompt is not None for init in step.inits] == [True]
    assert step.context_lens.tolist() == [0]
    assert owner.load().waiting == 1
    assert 1 in {each.handle for each in owner._residents}


def test_a_tighter_target_still_goes_first() -> None:
    owner = scheduler()
    owner.add(request(1, 20_000, ttft_s=2.0), 10.0)
    owner.add(request(2, 20_000, ttft_s=0.5), 10.1)
    owner.plan(10.2)
    assert {each.handle for each in owner._residents} == {2}


def test_a_stream_that_lost_its_worker_goes_before_what_is_new() -> None:
    owner = scheduler()
    owner.add(request(1, 20_000), 10.0)
    owner.add(replace(request(2, 20_000), delivered=np.full(5, 7, np.int32)), 10.1)
    owner.plan(10.2)
    assert {each.handle for each in owner._residents} == {2}


def test_credit_is_the_room_of_three_steps() -> None:
    owner = scheduler()
    owner.plan(0.0)
    idle_s = SchedulerSettings().idle_step_s - MODEL.coefficients[0]
    assert abs(owner.credits().prefill_tokens - 3 * idle_s * 1e5) < 10


def test_decodes_take_their_part_of_the_credit() -> None:
    owner = scheduler()
    before = owner.credits().prefill_tokens
    now = 0.0
    for handle in range(100):
        owner.add(request(handle, 10), now)
    for _ in range(4):
        run(owner, now)
        now += 0.05
    decode_s = MODEL.coefficients[0] + 100 * (MODEL.coefficients[1] + MODEL.coefficients[4])
    room_s = max(0.040, 2 * decode_s) - decode_s
    assert owner.credits().prefill_tokens < 0.6 * before
    assert abs(owner.credits().prefill_tokens - 3 * room_s * 1e5) < 0.1 * before


def test_there_is_always_some_credit_when_nothing_waits() -> None:
    owner = scheduler()
    now = 0.0
    for handle in range(250):
        owner.add(request(handle, 10), now)
        run(owner, now)
        now += 0.05
    assert owner.load().waiting == 0
    assert owner.credits().prefill_tokens > 0
