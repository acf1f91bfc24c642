"""Our policy in a router process: production objects, fed as the dispatcher and its sessions feed them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf

from bench.sim.early import class_of
from bench.sim.frame import Frame
from bench.sim.kernel import Kernel
from bench.sim.request import Story
from bench.sim.worker import SimWorker, Submit
from services.router.policy import Assignment, Cost, LatencyClass, Scheduler, Ticket, WorkerView
from services.router.policy.classify import OutputHistory
from services.worker.scheduler import request as engine
from services.worker.session.credits import NO_DEMAND, Demand

BLOCK = 64
TICK_S = 0.1  # as the dispatcher's
MODEL = "model"
_PAUSE_S = 0.05  # after a worker had no credit after all


@dataclass(slots=True)
class _Open:
    command: int
    cost: Cost


@dataclass(slots=True)
class _Account:
    """Load and credit of one session, as services/router/sessions/account.py keeps them."""

    frame: Frame | None = None
    heard: int = 0
    commands: int = 0
    open: deque[_Open] = field(default_factory=deque)  # submissions that no report covers
    prefill_tokens: int = 0
    kv_blocks: int = 0
    paused_until: float = 0.0
    gone: bool = False
    stories: dict[int, Story] = field(default_factory=dict)

    def book(self, cost: Cost) -> int:
        """Notes a submission; its command's number."""
        self.commands += 1
        self.open.append(_Open(self.commands, cost))
        self.prefill_tokens += cost.prefill_tokens
        self.kv_blocks += cost.kv_blocks
        return self.commands

    def reported(self, frame: Frame) -> None:
        """Takes over a frame, which settles what it acknowledges."""
        self.frame, self.heard = frame, frame.number
        while self.open and self.open[0].command <= frame.acknowledged_command:
            settled = self.open.popleft().cost
            self.prefill_tokens -= settled.prefill_tokens
            self.kv_blocks -= settled.kv_blocks


@dataclass(frozen=True)
class Variant:
    """Our policy with other settings than the default ones."""


def scheduler_of(variant: Variant) -> Scheduler:
    """The production scheduler."""
    return Scheduler(
        aging_s={LatencyClass.INTERACTIVE: inf, LatencyClass.STANDARD: 10.0, LatencyClass.BATCH: 600.0},
        patience_s={LatencyClass.INTERACTIVE: 5.0, LatencyClass.STANDARD: 30.0, LatencyClass.BATCH: inf},
    )


class HeadraceRouter:
    """One router process with our policy."""

    def __init__(self, kernel: Kernel, index: int, delay_s: float, variant: Variant) -> None:
        self.scheduler = scheduler_of(variant)
        self._kernel, self._index, self._delay_s = kernel, index, delay_s
        self._history = OutputHistory()
        self._workers: list[SimWorker] = []
        self._accounts: list[_Account] = []
        self._stories: dict[int, Story] = {}  # that wait
        self._tickets: dict[int, Ticket] = {}
        self._changed: set[int] = set()
        self._mail: deque[tuple[float, int, Frame]] = deque()
        self._wake_s = inf

    def attach(self, workers: list[SimWorker]) -> None:
        """The workers, once."""
        self._workers = workers
        self._accounts = [_Account() for _ in workers]

    def arrive(self, story: Story) -> None:
        """A request comes: it waits, if only for this turn."""
        self.read()
        story.router, story.served_class = self._index, class_of(story.request).value
        self._submit(story)
        self._dispatch()

    def read(self) -> None:
        """Takes note of all frames that have come by now."""
        mail, now = self._mail, self._kernel.now
        while mail and mail[0][0] <= now:
            self._hear(*mail.popleft())

    def post(self, worker: int, frame: Frame) -> None:
        when_s = self._kernel.now + self._delay_s
        self._mail.append((when_s, worker, frame))
        if self._stories or frame.returned:
            self._wake_at(when_s)

    def demand(self) -> tuple[Demand, Demand]:
        if not self._stories:
            return NO_DEMAND, NO_DEMAND
        waiting = self.scheduler.waiting(MODEL)
        demand = Demand(waiting.prefill_tokens, waiting.requests)
        return demand, demand

    def lost(self, worker: int) -> None:
        """A worker's session has ended: what it held goes on elsewhere, at its old place."""
        self.read()
        account = self._accounts[worker]
        account.gone = True
        self.scheduler.worker_gone(self._workers[worker].key)
        self._changed.discard(worker)
        for story in list(account.stories.values()):
            story.moves += 1
            story.output_tokens = self._workers[worker].delivered(story.request.number)
            self._submit(story)
        account.stories.clear()
        self._dispatch()

    def _submit(self, story: Story) -> None:
        ticket = self._ticket(story)
        self._stories[ticket.number] = story
        self._tickets[ticket.number] = ticket
        self.scheduler.submit(ticket)

    def _ticket(self, story: Story) -> Ticket:
        request, latency_class = story.request, LatencyClass(story.served_class)
        expected = self._history.expect(request.tenant, MODEL, latency_class, request.max_tokens)
        tokens = request.prompt_tokens + story.output_tokens
        return Ticket(
            number=request.number,
            model=MODEL,
            tenant=request.tenant,
            latency_class=latency_class,
            cost=Cost(tokens, 1, -(-(request.prompt_tokens + expected) // BLOCK)),
            total_tokens=request.prompt_tokens + request.max_tokens,
            arrival_s=request.arrival_s,
            deadline_s=None
            if request.deadline_after_s is None
            else request.arrival_s + request.deadline_after_s,
        )

    def _hear(self, at_s: float, worker: int, frame: Frame) -> None:
        account = self._accounts[worker]
        if account.gone:
            return
        account.reported(frame)
        self._changed.add(worker)
        for number in frame.first:
            self._first(account.stories[number], at_s)
        for ended in frame.ended:
            story = account.stories.pop(ended.number)
            self._first(story, at_s)
            story.finish(ended.usage, at_s)
            latency_class = LatencyClass(story.served_class)
            self._history.record(story.request.tenant, MODEL, latency_class, story.output_tokens)
        for number in frame.returned:
            account.paused_until = at_s + _PAUSE_S
            self._submit(account.stories.pop(number))

    def _first(self, story: Story, at_s: float) -> None:
        if story.first_s is None:
            story.first_s = at_s

    def _dispatch(self) -> None:
        now = self._kernel.now
        for worker in self._changed:
            self.scheduler.worker_changed(self._view(worker))
        self._changed.clear()
        while (assignment := self.scheduler.next(now)) is not None:
            self._seat(assignment)
        if self._stories:
            self._wake_at(min(now + TICK_S, self._mail[0][0] if self._mail else inf))

    def _seat(self, assignment: Assignment) -> None:
        number, now = assignment.ticket.number, self._kernel.now
        story = self._stories.pop(number)
        ticket = self._tickets.pop(number)
        place = int(assignment.worker)
        account, worker = self._accounts[place], self._workers[place]
        cost = assignment.ticket.cost
        command = account.book(cost)
        self._changed.add(place)
        account.stories[number] = story
        story.worker, story.submitted_s = place, now
        submit = Submit(
            self._index,
            command,
            account.heard,
            story.request,
            engine.LatencyClass(story.served_class),
            None,
            story.output_tokens,
        )
        self._kernel.at(now + self._delay_s, lambda: worker.receive(submit))

    def _view(self, place: int) -> WorkerView:
        account, worker = self._accounts[place], self._workers[place]
        frame = account.frame
        assert frame is not None
        spec, load, credit = worker.device.spec, frame.load, frame.credit.all
        return WorkerView(
            key=worker.key,
            model=MODEL,
            ready=not account.gone and self._kernel.now >= account.paused_until,
            credit=Cost(
                credit.prefill_tokens - account.prefill_tokens,
                credit.sequences - len(account.open),
                credit.kv_blocks - account.kv_blocks,
            ),
            sequences=max(load.running + load.waiting + len(account.open), len(account.stories)),
            waiting_tokens=load.waiting_uncached_tokens + account.prefill_tokens,
            max_sequences=spec.max_seqs,
            max_tokens=spec.max_len,
            total_blocks=spec.num_blocks,
        )

    def _wake_at(self, when_s: float) -> None:
        if when_s < self._wake_s:
            self._wake_s = when_s
            self._kernel.at(when_s, self._wake)

    def _wake(self) -> None:
        if self._kernel.now >= self._wake_s:
            self._wake_s = inf
            self.read()
            self._dispatch()
