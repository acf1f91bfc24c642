"""Our policy in a router process: production objects, fed as the dispatcher and its sessions feed them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from bench.sim.account import Account
from bench.sim.early import class_of
from bench.sim.frame import Ended, Frame
from bench.sim.kernel import Kernel
from bench.sim.request import NUMERICS, Story
from bench.sim.worker import Cancel, SimWorker, Submit
from services.router.policy import Assignment, Cost, LatencyClass, PolicySettings, Scheduler, Ticket
from services.router.policy.classify import OutputHistory
from services.router.policy.kv_feed import KvFeed
from services.router.policy.ticket import NO_CHAINS
from services.worker.scheduler import request as engine
from services.worker.session.credits import NO_DEMAND, Demand

BLOCK = 64
TICK_S = 0.1  # as the dispatcher's
MODEL = "model"


@dataclass(frozen=True)
class Variant:
    """Our policy with other settings than the default ones."""

    policy: PolicySettings | None = None


class HeadraceRouter:
    """One router process with our policy."""

    def __init__(self, kernel: Kernel, index: int, delay_s: float, variant: Variant) -> None:
        self.scheduler = Scheduler(variant.policy)
        self._kernel, self._index, self._delay_s = kernel, index, delay_s
        self._history = OutputHistory()
        self._workers: list[SimWorker] = []
        self._accounts: list[Account] = []
        self._feeds: list[KvFeed] = []
        self._stories: dict[int, Story] = {}  # that wait, by request
        self._changed: set[int] = set()
        self._mail: deque[tuple[float, int, Frame]] = deque()
        self._wake_s = inf
        self._tick_s = 0.0
        self._handles = 0

    def attach(self, workers: list[SimWorker]) -> None:
        """The workers, once."""
        self._workers = workers
        self._accounts = [Account(each) for each in workers]

    def arrive(self, story: Story) -> None:
        """A request comes: it is refused, or waits, if only for this turn."""
        self.read()
        now = self._kernel.now
        story.router, story.served_class = self._index, class_of(story.request).value
        ticket = self._ticket(story)
        if not self.scheduler.within_budget(ticket, now):
            story.served_class = LatencyClass.STANDARD.value
            ticket = replace(ticket, latency_class=LatencyClass.STANDARD)
        refusal = self.scheduler.admit(ticket, now)
        if refusal is not None:
            story.refused, story.refused_s = refusal.kind.name, now
            return
        self._submit(story, ticket)
        self._dispatch()

    def read(self) -> None:
        """Takes note of all frames that have come by now."""
        mail, now = self._mail, self._kernel.now
        while mail and mail[0][0] <= now:
            self._hear(*mail.popleft())
        if now >= self._tick_s:
            self._tick(now)

    def post(self, worker: int, frame: Frame) -> None:
        when_s = self._kernel.now + self._delay_s
        self._mail.append((when_s, worker, frame))
        if self._stories or frame.returned:
            self._wake_at(when_s)

    def demand(self) -> tuple[Demand, Demand]:
        if not self._stories:
            return NO_DEMAND, NO_DEMAND
        waiting = self.scheduler.waiting(MODEL)
        foreground = Demand(waiting.foreground_prefill_tokens, waiting.foreground_requests)
        return Demand(waiting.prefill_tokens, waiting.requests), foreground

    def lost(self, worker: int) -> None:
        """A worker's session has ended: what it held goes on elsewhere, at its old place."""
        self.read()
        account = self._accounts[worker]
        account.gone = True
        self.scheduler.worker_gone(self._workers[worker].key)
        self._changed.discard(worker)
        for handle, story in list(account.stories.items()):
            story.moves += 1
            story.output_tokens = self._workers[worker].delivered(handle)
            self._submit(story, self._ticket(story))
        account.stories.clear()
        self._dispatch()

    def _tick(self, now: float) -> None:
        self._tick_s = now + TICK_S
        if self._feeds:
            self.scheduler.fleet(MODEL).index.expire(now)
        for ticket in self.scheduler.impatient(now):
            story = self._stories.pop(ticket.number)
            self.scheduler.ended(ticket.number)
            story.refused, story.refused_s = "NO_WORKER", now

    def _submit(self, story: Story, ticket: Ticket) -> None:
        self._stories[ticket.number] = story
        self.scheduler.submit(ticket, self._kernel.now)

    def _ticket(self, story: Story) -> Ticket:
        request, latency_class = story.request, LatencyClass(story.served_class)
        expected = self._history.expect(request.tenant, MODEL, latency_class, request.max_tokens)
        chain = request.digests.view(np.uint64).reshape(-1, 2)
        deadline_s = request.deadline_after_s
        return Ticket(
            number=request.number,
            model=MODEL,
            tenant=request.tenant,
            latency_class=latency_class,
            cost=Cost(
                request.prompt_tokens + story.output_tokens,
                1,
                -(-(request.prompt_tokens + expected) // BLOCK),
            ),
            total_tokens=request.prompt_tokens + request.max_tokens,
            arrival_s=request.arrival_s,
            deadline_s=None if deadline_s is None else request.arrival_s + deadline_s,
            expected_output=expected,
            output_known=self._history.knows(request.tenant, MODEL, latency_class),
            chains={NUMERICS: chain} if len(chain) else NO_CHAINS,
            sheddable=request.sheddable,
            ttft_target_s=request.ttft_target_s,
            tpot_target_s=request.tpot_target_s,
            queued_bytes=4 * request.prompt_tokens,
        )

    def _hear(self, at_s: float, worker: int, frame: Frame) -> None:
        account = self._accounts[worker]
        if account.gone:
            return
        account.reported(frame)
        self._changed.add(worker)
        if frame.blocks.digests:
            self._feeds[worker].events(frame.blocks.first_number, frame.blocks.stored, frame.blocks.digests)
        for handle in frame.first:
            _first(account.stories.get(handle), at_s)
        for handle, tokens in frame.made.items():
            story = account.stories.get(handle)
            if story is not None:
                self.scheduler.streamed(story.request.number, tokens, at_s)
        for tag, served in frame.served.items():
            latency_class = LatencyClass(int(tag[:1]))
            self.scheduler.served(MODEL, tag[1:].decode(), latency_class, *served)
        for ended in frame.ended:
            self._ended(account, ended, at_s)
        for handle in frame.returned:
            story = account.stories.pop(handle)
            account.pause(at_s)
            self._submit(story, self._ticket(story))

    def _ended(self, account: Account, ended: Ended, at_s: float) -> None:
        story = account.stories.pop(ended.handle, None)
        if story is None:
            return
        number, usage = story.request.number, ended.usage
        self.scheduler.ended(number, usage.cached_tokens)
        if not ended.done:
            story.refused, story.refused_s = "DEADLINE", at_s
            return
        _first(story, at_s)
        story.finish(usage, at_s)
        latency_class = LatencyClass(story.served_class)
        self._history.record(story.request.tenant, MODEL, latency_class, usage.output_tokens)

    def _dispatch(self) -> None:
        now = self._kernel.now
        self._refresh(now)
        while (assignment := self.scheduler.next(now)) is not None:
            self._seat(assignment)
        for displaced in self.scheduler.give_way(now):
            self._displace(displaced.number, int(displaced.worker))
        if self._stories:
            self._wake_at(min(now + TICK_S, self._mail[0][0] if self._mail else inf))

    def _refresh(self, now: float) -> None:
        for worker in self._changed:
            self.scheduler.worker_changed(self._accounts[worker].view(now))
        self._changed.clear()
        if not self._feeds:
            index = self.scheduler.fleet(MODEL).index
            self._feeds = [KvFeed(each.key, each.device.spec.num_blocks, index) for each in self._workers]
            for feed in self._feeds:
                feed.snapshot(1, b"", last=True, now=now)

    def _seat(self, assignment: Assignment) -> None:
        number, now = assignment.ticket.number, self._kernel.now
        story = self._stories.pop(number)
        place = int(assignment.worker)
        account, worker = self._accounts[place], self._workers[place]
        self._handles += 1
        handle = self._handles * 16 + self._index
        latency_class = engine.LatencyClass(story.served_class)
        foreground = latency_class is not engine.LatencyClass.BATCH
        command = account.book(assignment.cost, foreground=foreground)
        account.stories[handle] = story
        self._changed.add(place)
        story.worker, story.submitted_s, story.notes["handle"] = place, now, handle
        if story.predicted_ttft_s is None:
            story.predicted_ttft_s = assignment.predicted.ttft_s
        submit = Submit(
            handle,
            self._index,
            command,
            account.heard,
            story.request,
            latency_class,
            assignment.ticket.expected_output,
            story.output_tokens,
        )
        self._kernel.at(now + self._delay_s, lambda: worker.receive(submit))

    def _displace(self, number: int, place: int) -> None:
        """A request gives way: it is cancelled on its worker and waits at its old place, output kept."""
        account, worker = self._accounts[place], self._workers[place]
        handle, story = next(each for each in account.stories.items() if each[1].request.number == number)
        del account.stories[handle]
        story.output_tokens = worker.delivered(handle)
        story.notes["displaced"] = story.notes.get("displaced", 0) + 1
        cancel = Cancel(self._index, account.command(), account.heard, handle)
        self._kernel.at(self._kernel.now + self._delay_s, lambda: worker.receive(cancel))
        self._submit(story, self._ticket(story))

    def _wake_at(self, when_s: float) -> None:
        if when_s < self._wake_s:
            self._wake_s = when_s
            self._kernel.at(when_s, self._wake)

    def _wake(self) -> None:
        if self._kernel.now >= self._wake_s:
            self._wake_s = inf
            self.read()
            self._dispatch()


def _first(story: Story | None, at_s: float) -> None:
    if story is not None and story.first_s is None:
        story.first_s = at_s
