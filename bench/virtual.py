"""One simulated worker in virtual time: the production scheduler, stepped as the engine's loop steps it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from services.worker.engine.base import Pending, Runner
from services.worker.engine.simulated.clock import VirtualClock
from services.worker.scheduler.events import Finished
from services.worker.scheduler.request import Request
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import Step

_LOOK_AGAIN_S = 0.005  # as the engine's loop, when work is there that may not run now


@dataclass(slots=True)
class Story:
    """What happened to one request, in virtual seconds."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    first_s: float | None = None
    last_s: float | None = None
    finished: Finished | None = None


class VirtualWorker:
    """Drives a scheduler and a runner on one virtual clock. The host's own work takes no time.

    Args:
        run_ahead: steps launched before the result of an earlier one is known, as in the engine's loop.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, clock: VirtualClock, run_ahead: int = 0) -> None:
        self.scheduler = scheduler
        self.stories: dict[int, Story] = {}
        self.served: dict[bytes, list[int]] = {}  # prompt and output tokens by tenant
        self.steps = 0
        self._runner = runner
        self._clock = clock
        self._run_ahead = run_ahead
        self._arrivals: list[tuple[float, int, Request]] = []
        self._number = count()
        self._in_flight: deque[tuple[Step, Pending, float]] = deque()
        self._finished_s = clock.now()

    @property
    def now_s(self) -> float:
        return self._clock.now()

    def submit(self, requests: Iterable[Request]) -> None:
        """Have requests arrive at their times, or now where those have passed."""
        for request in requests:
            heapq.heappush(self._arrivals, (request.arrival_s, next(self._number), request))

    def run(self, until_s: float = float("inf")) -> Iterator[Finished]:
        """Turn until nothing is left to do or the time has come; yields ends as they happen."""
        while self._clock.now() < until_s and self._has_work:
            yield from self._turn(until_s)

    @property
    def _has_work(self) -> bool:
        return bool(self._arrivals or self._in_flight or self.scheduler.has_work)

    def _turn(self, until_s: float) -> list[Finished]:
        self._arrive()
        launched = self._launch()
        if len(self._in_flight) > (self._run_ahead if launched else 0):
            self._settle()
        elif not launched:
            self._idle(until_s)
        return self._listen()

    def _arrive(self) -> None:
        now = self._clock.now()
        while self._arrivals and self._arrivals[0][0] <= now:
            request = heapq.heappop(self._arrivals)[2]
            self.stories[request.handle] = Story(request)
            self.scheduler.add(request, now)

    def _launch(self) -> bool:
        now = self._clock.now()
        step = self.scheduler.plan(now)
        if step is not None:
            self.steps += 1
            self._in_flight.append((step, self._runner.launch(step), now))
        return step is not None

    def _settle(self) -> None:
        step, pending, launched_s = self._in_flight.popleft()
        sampled = pending.result()
        now = self._clock.now()
        self.scheduler.commit(step, sampled, now, now - max(launched_s, self._finished_s))
        self._finished_s = now

    def _idle(self, until_s: float) -> None:
        wake_s = self._clock.now() + _LOOK_AGAIN_S if self.scheduler.has_work else until_s
        next_s = self._arrivals[0][0] if self._arrivals else until_s
        self._clock.sleep_until(min(wake_s, next_s))

    def _listen(self) -> list[Finished]:
        events, now = self.scheduler.take_events(), self._clock.now()
        for news in events.outputs:
            story = self.stories[news.handle]
            story.token_ids.append(news.token)
            story.first_s = now if story.first_s is None else story.first_s
            story.last_s = now
        for tenant, served in events.served.items():
            totals = self.served.setdefault(tenant, [0, 0])
            totals[0] += served.prompt_tokens
            totals[1] += served.output_tokens
        for finished in events.terminals.finished:
            self.stories[finished.handle].finished = finished
        assert not events.terminals.rejected, events.terminals.rejected
        return list(events.terminals.finished)
