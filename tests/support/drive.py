"""Drives a scheduler and a runner as the engine's loop does, in virtual time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from services.worker.engine.base import Pending, Runner
from services.worker.scheduler.events import Events, Finished, Rejected, Returned
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import Request
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import Step
from tests.support.fake_runner import EOS, VOCAB

FACTS = ModelFacts(vocab_size=VOCAB, eos_ids=(EOS,), numerics_id=bytes(32))


@dataclass
class Story:
    """Everything that was reported of one handle."""

    tokens: list[int] = field(default_factory=list)
    first_index: int | None = None
    terminals: list[Finished | Rejected | Returned] = field(default_factory=list)


class Drive:
    """A scheduler, a runner and a clock that advances by `step_s` a step."""

    def __init__(
        self,
        runner: Runner,
        settings: SchedulerSettings | None = None,
        facts: ModelFacts = FACTS,
        step_s: float = 0.01,
    ) -> None:
        self.scheduler = Scheduler(runner.spec, settings or SchedulerSettings(), facts, runner.capabilities)
        self.stories: dict[int, Story] = {}
        self.steps: list[Step] = []
        self.events: list[Events] = []
        self.now = 0.0
        self._runner = runner
        self._step_s = step_s
        self._in_flight: deque[tuple[Step, Pending]] = deque()

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.stories.setdefault(request.handle, Story())
            self.scheduler.add(request, self.now)

    def turn(self) -> Step | None:
        """One turn of the loop: plan and launch, settle what is due, hear what happened."""
        step = self.scheduler.plan(self.now)
        if step is not None:
            self.steps.append(step)
            self._in_flight.append((step, self._runner.launch(step)))
        if len(self._in_flight) > (self._runner.capabilities.run_ahead if step is not None else 0):
            launched, pending = self._in_flight.popleft()
            self.now += self._step_s
            self.scheduler.commit(launched, pending.result(), self.now, self._step_s)
        elif step is None:
            self.now += self._step_s
        self.listen()
        return step

    def listen(self) -> None:
        """Note what was reported; checks that tokens arrive in order and nothing follows an end."""
        events = self.scheduler.take_events()
        self.events.append(events)
        for news in events.outputs:
            story = self.stories[news.handle]
            if story.first_index is None:
                story.first_index = news.output_index
            assert news.output_index == story.first_index + len(story.tokens), "a token is lost or doubled"
            assert not story.terminals, "a token after the end"
            story.tokens.append(news.token)
        for terminals in events.terminals:
            for terminal in terminals:
                self.stories[terminal.handle].terminals.append(terminal)

    def run(self, max_turns: int = 10_000) -> None:
        """Turn until nothing is left to do."""
        for _ in range(max_turns):
            if not self.scheduler.has_work and not self._in_flight:
                return
            self.turn()
        raise AssertionError(f"still at work after {max_turns} turns: {self.scheduler.load()}")
