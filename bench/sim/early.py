"""A router that binds on arrival by a published policy: everything waits in the workers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from bench.sim.frame import Ended, Frame
from bench.sim.kernel import Kernel
from bench.sim.prefixes import GivenPrefixes, Prefixes, ToldPrefixes
from bench.sim.published.view import Ask, Policy, Polled, Pool
from bench.sim.request import SimRequest, Story
from bench.sim.worker import SimWorker, Submit
from services.router.policy.classify import LatencyClass, classify
from services.worker.scheduler import request as engine
from services.worker.session.credits import NO_DEMAND, Demand

BLOCK = 64


def class_of(request: SimRequest) -> LatencyClass:
    """As our router classifies: all policies send the same classes to the workers."""
    asked = None if request.latency_class is None else LatencyClass(request.latency_class.value)
    return classify(
        asked,
        streaming=request.streaming,
        deadline_s=request.deadline_after_s,
        most_urgent=LatencyClass.INTERACTIVE,
    ).latency_class


@dataclass(slots=True)
class _Given:
    worker: int
    uncached: int
    prompt_tokens: int
    first: bool = False


class EarlyRouter:
    """One router process with a published policy."""

    def __init__(self, kernel: Kernel, policy: Policy, delay_s: float, seed: int, index: int) -> None:
        self._kernel, self._policy, self._delay_s, self._index = kernel, policy, delay_s, index
        self._seed = seed
        self._workers: list[SimWorker] = []
        self._stories: dict[int, Story] = {}
        self._given: dict[int, _Given] = {}
        self._mail: deque[tuple[float, int, Frame]] = deque()
        self._polled_s = -1.0
        self._pool = Pool.idle(0)
        self._prefixes: Prefixes = ToldPrefixes(0)

    def attach(self, workers: list[SimWorker]) -> None:
        """The workers, once."""
        self._workers = workers
        self._pool = Pool.idle(len(workers), self._seed)
        self._pool.peak_rate = [2048 / each.device.prompt_s(2048) for each in workers]
        capacities = [each.device.spec.num_blocks for each in workers]
        self._prefixes = GivenPrefixes(capacities) if self._policy.own_history else ToldPrefixes(len(workers))

    def arrive(self, story: Story) -> None:
        """A request comes, and goes on at once."""
        self.read()
        request, pool = story.request, self._pool
        self._stories[request.number] = story
        hits = [each * BLOCK for each in self._prefixes.hits(request.names)]
        place = self._policy.choose(Ask(request.prompt_tokens, hits), pool)
        self._prefixes.given(place, request.names)
        self._book(request, place, hits[place])
        story.router, story.worker, story.submitted_s = self._index, place, self._kernel.now
        story.served_class = class_of(request).value
        worker, submit = self._workers[place], self._submit(story)
        self._kernel.at(self._kernel.now + self._delay_s, lambda: worker.receive(submit))

    def read(self) -> None:
        """Takes note of all frames that have come by now, and reads metrics when that is due."""
        mail = self._mail
        while mail and mail[0][0] <= self._kernel.now:
            self._hear(*mail.popleft())
        period_s = self._policy.poll_s
        if period_s is not None and self._kernel.now - self._polled_s >= period_s:
            self._poll(self._kernel.now // period_s * period_s)

    def post(self, worker: int, frame: Frame) -> None:
        self._mail.append((self._kernel.now + self._delay_s, worker, frame))

    def demand(self) -> tuple[Demand, Demand]:
        return NO_DEMAND, NO_DEMAND

    def lost(self, worker: int) -> None:
        """A worker is gone; what it had is lost, as these policies have no queue to go back to."""
        self._prefixes.gone(worker)

    def _submit(self, story: Story) -> Submit:
        latency_class = engine.LatencyClass(story.served_class)
        return Submit(story.request.number, self._index, 0, 0, story.request, latency_class, None)

    def _book(self, request: SimRequest, place: int, cached: int) -> None:
        pool, uncached = self._pool, request.prompt_tokens - cached
        self._given[request.number] = _Given(place, uncached, request.prompt_tokens)
        pool.in_flight[place] += 1
        pool.prefill_tokens[place] += uncached
        pool.active_tokens[place] += request.prompt_tokens
        pool.since_poll_tokens[place] += request.prompt_tokens
        pool.cache_tokens[place] = self._prefixes.size(place) * BLOCK

    def _poll(self, at_s: float) -> None:
        self._polled_s = at_s
        self._pool.since_poll_tokens = [0] * len(self._workers)
        self._pool.polled = [_metrics(each) for each in self._workers]

    def _hear(self, at_s: float, worker: int, frame: Frame) -> None:
        if frame.blocks.digests:
            self._prefixes.told(worker, frame.blocks)
        for number in frame.first:
            self._first(number, at_s)
        for ended in frame.ended:
            if ended.done:
                self._first(ended.handle, at_s)
            self._end(self._stories[ended.handle], ended, at_s)

    def _first(self, number: int, at_s: float) -> None:
        given = self._given[number]
        if not given.first:
            given.first = True
            self._stories[number].first_s = at_s
            self._pool.prefill_tokens[given.worker] -= given.uncached
            self._pool.decoding[given.worker] += 1

    def _end(self, story: Story, ended: Ended, at_s: float) -> None:
        given = self._given.pop(story.request.number)
        if ended.done:
            story.finish(ended.usage, at_s)
        self._pool.in_flight[given.worker] -= 1
        self._pool.decoding[given.worker] -= given.first
        self._pool.prefill_tokens[given.worker] -= 0 if given.first else given.uncached
        self._pool.active_tokens[given.worker] -= given.prompt_tokens


def _metrics(worker: SimWorker) -> Polled:
    load = worker.scheduler.load()
    return Polled(
        load.waiting, load.running, load.waiting_uncached_tokens, load.blocks_held / load.blocks_total
    )
