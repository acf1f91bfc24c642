"""A heavy tenant's prompts fill a worker's line: a light one's go before them, within bounds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.recent import WINDOW_S, RecentWork
from services.worker.scheduler.request import LatencyClass, Request, Sampling
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import Capabilities, KVSpec, Sampled

MODEL = StepModelState((1e-3, 1e-5, 0.0, 0.0, 2e-4), 1.0, 0.0, 1000)  # 100,000 prompt tokens a second
HEAVY, LIGHT = b"heavy", b"light"


class Worker:
    """A scheduler whose steps take what its model says."""

    def __init__(self) -> None:
        spec = KVSpec(block_size=64, num_blocks=4096, max_seqs=256, max_len=65_536)
        facts = ModelFacts(32_000, (2,), bytes(32))
        self.scheduler = Scheduler(spec, SchedulerSettings(), facts, Capabilities(), prior=MODEL)
        self.now = 10.0
        self.order: list[int] = []

    def add(self, handle: int, tenant: bytes, prompt: int) -> None:
        asked = Request(
            handle=handle,
            prompt=np.full(prompt, 7, np.int32),
            max_tokens=1,
            arrival_s=self.now,
            sampling=Sampling(ignore_eos=True),
            latency_class=LatencyClass.INTERACTIVE,
            tenant=tenant,
        )
        assert self.scheduler.add(asked, self.now)

    def step(self) -> None:
        step = self.scheduler.plan(self.now)
        if step is None:
            return
        seconds = float(np.dot(MODEL.coefficients, step.cost))
        self.now += seconds
        sampled = Sampled(np.where(step.samples, 5, -1).astype(np.int32))
        self.scheduler.commit(step, sampled, self.now, seconds)
        ended = self.scheduler.take_events().terminals.finished
        self.order += [each.handle for each in ended]

    def finish(self) -> list[int]:
        while self.scheduler.has_work:
            self.step()
        return self.order


def kept_busy(tenant: bytes) -> Worker:
    worker = Worker()
    for handle in range(6):
        worker.add(handle, tenant, 20_000)
    worker.finish()
    worker.order.clear()
    return worker


def test_a_light_tenant_goes_before_what_waits_of_a_heavy_one() -> None:
    worker = kept_busy(HEAVY)
    for handle in range(10, 14):
        worker.add(handle, HEAVY, 20_000)
    worker.step()
    worker.add(20, LIGHT, 1000)
    assert worker.finish()[0] == 20


def test_tenants_that_had_as_much_go_in_the_order_of_their_arrival() -> None:
    worker = Worker()
    worker.add(1, HEAVY, 20_000)
    worker.add(2, LIGHT, 1000)
    assert worker.finish() == [1, 2]


def test_a_heavy_tenant_waits_no_longer_than_the_window_for_others() -> None:
    worker = kept_busy(HEAVY)
    worker.add(10, HEAVY, 1000)
    came_s, handle = worker.now, 100
    while 10 not in worker.order:
        handle += 1
        worker.add(handle, b"light%d" % handle, 3000)  # always somebody new, as much as the worker can do
        worker.step()
        assert worker.now < came_s + 2 * WINDOW_S
    assert worker.now <= came_s + WINDOW_S + 0.2


@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 5.0)), min_size=1, max_size=40
    )  # pauses, seconds of work
)
def test_one_tenants_requests_keep_their_order(events: list[tuple[float, float]]) -> None:
    recent, now = RecentWork(), 0.0
    places: list[float] = []
    for pause_s, work_s in events:
        now += pause_s
        places.append(now + recent.of(HEAVY, now))
        recent.add(HEAVY, work_s, now)
    assert all(earlier <= later + 1e-9 for earlier, later in pairwise(places))
    assert recent.of(HEAVY, now) <= WINDOW_S


def test_many_tenants_are_forgotten_again() -> None:
    recent = RecentWork()
    for number in range(20_000):
        recent.add(b"%d" % number, 0.01, 0.01 * number)
    assert len(recent._had) <= 4096
    assert recent.of(b"19999", 200.0) > 0.0
