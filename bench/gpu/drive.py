"""The production scheduler over a runner, in this process: no pipe, no second process, the loop's own order.

    plan N+1 ─▶ launch N+1 ─▶ result N ─▶ commit N ─▶ take the events

It is `services.worker.engine.loop` without what needs a mesh: commands, heartbeats, grammars.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from bench.gpu.place import OutOfTime
from services.worker.engine.base import Pending, Runner
from services.worker.scheduler.events import Finished
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import FinishReason, Ids, LatencyClass, Request, Sampling
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import Step

FIRST_ID = 3  # ids below it are special tokens of most vocabularies
_STUCK_S = 30.0


class Turn(NamedTuple):
    """One turn of the loop, as the host saw it."""

    at_s: float
    host_s: float  # without waiting for the device
    rows: int
    tokens: int


class _Launched(NamedTuple):
    step: Step
    pending: Pending
    at_s: float


@dataclass(eq=False)
class Track:
    """One request and what came of it."""

    handle: int
    request: Request
    ids: list[int] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)  # when each was known
    logprobs: list[float] = field(default_factory=list)  # of the chosen ones, where asked for
    finished: Finished | None = None

    @property
    def done(self) -> bool:
        return self.finished is not None


class Engine:
    """A scheduler and a runner; `ends_s` of time.monotonic is when patience ends."""

    def __init__(self, runner: Runner, vocab: int, ends_s: float = math.inf) -> None:
        self.runner = runner
        self.vocab = vocab
        self.scheduler = Scheduler(
            runner.spec, SchedulerSettings(), ModelFacts(vocab, (), b"bench"), runner.capabilities
        )
        self.tracks: dict[int, Track] = {}
        self.turns: list[Turn] = []
        self._ends_s = ends_s
        self._in_flight: deque[_Launched] = deque()
        self._last_s = 0.0
        self._handles = count(1)
        self._waited_s = 0.0

    def submit(self, prompt: Ids, outputs: int, **fields: Any) -> Track:
        """A request of exactly so many outputs; `fields` are further ones of Request."""
        handle = next(self._handles)
        sampling = fields.pop("sampling", Sampling(ignore_eos=True))
        fields.setdefault("latency_class", LatencyClass.STANDARD)
        request = Request(
            handle=handle,
            prompt=prompt,
            max_tokens=outputs,
            arrival_s=time.monotonic(),
            sampling=sampling,
            **fields,
        )
        track = self.tracks[handle] = Track(handle, request)
        assert self.scheduler.add(request, time.monotonic()), self.scheduler.take_events().terminals.rejected
        return track

    def abort(self, track: Track) -> None:
        """Ends a request; its terminal event comes with a later turn."""
        self.scheduler.abort(track.handle, time.monotonic())

    def turn(self) -> bool:
        """One turn of the loop; whether anything was launched or settled."""
        began_s, self._waited_s = time.perf_counter(), 0.0
        launched = self._launch()
        allowed = self.runner.capabilities.run_ahead if launched else 0
        settled = None
        if len(self._in_flight) > allowed:
            settled = self._settle(self._in_flight.popleft())
        self._hear()
        ended_s = time.perf_counter()
        if settled is not None:
            host_s = ended_s - began_s - self._waited_s
            self.turns.append(Turn(ended_s, host_s, len(settled.slots), len(settled.tokens)))
        return launched or settled is not None

    def until(self, condition: Callable[[], bool]) -> None:
        """Turns until it holds. Raises OutOfTime, or RuntimeError when nothing moves any more."""
        moved_s = time.monotonic()
        while not condition():
            now = time.monotonic()
            if now > self._ends_s:
                raise OutOfTime(f"{self.scheduler.load().running} requests still run")
            if self.turn():
                moved_s = now
            elif now - moved_s > _STUCK_S:
                raise RuntimeError(f"nothing ran for {_STUCK_S:g} s: {self.scheduler.load()}")

    def finish(self, tracks: Iterable[Track] | None = None) -> None:
        """Turns until all of these have ended, and no step is under way."""
        waited = list(self.tracks.values() if tracks is None else tracks)
        self.until(lambda: all(track.done for track in waited))
        while self._in_flight:
            self.turn()

    def improve(self, most_s: float) -> None:
        """Has the runner use an idle moment, until there is no more to do or time is up."""
        ends_s = time.monotonic() + most_s
        while time.monotonic() < ends_s and self.runner.improve():
            pass

    def _launch(self) -> bool:
        step = self.scheduler.plan(time.monotonic())
        if step is None:
            return False
        self._in_flight.append(_Launched(step, self.runner.launch(step), time.monotonic()))
        return True

    def _settle(self, launched: _Launched) -> Step:
        began_s = time.perf_counter()
        sampled = launched.pending.result()
        self._waited_s += time.perf_counter() - began_s
        now = time.monotonic()
        self.scheduler.commit(launched.step, sampled, now, now - max(launched.at_s, self._last_s))
        self._last_s = now
        return launched.step

    def _hear(self) -> None:
        if not self.scheduler.has_news:
            return
        events, now = self.scheduler.take_events(), time.perf_counter()
        for news in events.outputs:
            track = self.tracks[news.handle]
            assert news.output_index == len(track.ids), "a token is missing, or came twice"
            track.ids.append(news.token)
            track.token_s.append(now)
            track.logprobs += [news.logprobs.chosen] if news.logprobs else []
        for finished in events.terminals.finished:
            self.tracks[finished.handle].finished = finished
            if finished.reason is FinishReason.ERROR:
                raise RuntimeError(f"request {finished.handle}: {finished.message}")


def prompt_of(tokens: int, vocab: int, seed: int) -> Ids:
    """Random ids."""
    return np.random.default_rng(seed).integers(FIRST_ID, vocab, tokens, dtype=np.int32)


def percentile(values: list[float], percent: float) -> float:
    """With interpolation."""
    return float(np.percentile(values, percent))
