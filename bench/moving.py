"""Does it pay to move running streams? The production policy over simulated workers, in virtual time.

Requests arrive at random, are placed by the production scheduler, and run in steps of their worker's step
model; every 0.3 s the production policy says who would end sooner elsewhere. A stream that moves computes
its prompt and output again there, in the steps of those that run there. The same requests with and without
moving.

    python -m bench.moving [--seeds 5] [--results DIR]
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from bench.results_contract import RESULTS, Row, record, row
from services.cli.bench.stats import quantile
from services.router.policy import Cost, LatencyClass, Scheduler, Ticket, WorkerView
from services.router.policy.moving import (
    MovingSettings,
    Stream,
    arrivals_a_s,
    expected_left,
    moves,
    slow_workers,
)
from services.router.policy.speed import StepModel

SURVEY_S, STAY_S = 0.3, 5.0
CHUNK, SLOTS = 2048, 128
MEDIAN = 0.65
"""Of output tokens, in times of their mean, which is what history says of all."""
GPU = StepModel(8e-3, 3e-5, 1e-9, 2e-8, 1e-4)
OLD_GPU = StepModel(*(4 * each for each in GPU[:5]))
CPU = StepModel(5e-2, 2e-3, 1e-8, 1e-7, 1e-2)


_HOW = (MovingSettings(), None)


class Scene(NamedTuple):
    """What happens to whom. Times in seconds."""

    name: str
    models: tuple[StepModel, ...]
    rate: float
    """Requests a second."""
    seconds: float = 60.0
    output: int = 400
    """Mean tokens of an answer."""
    joins_s: tuple[float, ...] = ()
    """When each worker comes; all at 0 where it is empty."""


SCENES = (
    Scene("a second GPU joins", (GPU, GPU), 11.0, joins_s=(0.0, 20.0)),
    Scene("a second GPU joins, long answers", (GPU, GPU), 3.0, output=2000, joins_s=(0.0, 40.0)),
    Scene("a second CPU joins", (CPU, CPU), 0.15, 400.0, joins_s=(0.0, 150.0)),
    Scene("a GPU joins a CPU", (CPU, GPU), 0.2, 300.0, joins_s=(0.0, 100.0)),
    Scene("two of four GPUs are 4 x slower", (GPU, GPU, OLD_GPU, OLD_GPU), 22.0),
    Scene("one of four GPUs comes back empty", (GPU,) * 4, 33.0, joins_s=(0.0, 0.0, 0.0, 30.0)),
    Scene("four even GPUs", (GPU,) * 4, 33.0),
)


@dataclass(slots=True, eq=False)
class Request:
    """One stream."""

    ticket: Ticket
    prompt: int
    output: int
    made: int = 0
    to_compute: int = 0
    since_s: float = 0.0
    end_s: float = 0.0
    moved: int = 0

    def now(self, barred: frozenset[str] = frozenset()) -> Ticket:
        """As it would come back."""
        again = self.prompt + self.made
        left = expected_left(self.ticket.expected_output, self.made, 1 << 30)
        return replace(self.ticket, cost=_cost(again), expected_output=left, barred=barred)


@dataclass(slots=True)
class Site:
    """A worker: prompts in chunks, first come first served, beside all decodes."""

    key: str
    model: StepModel
    streams: list[Request] = field(default_factory=list)
    stepping: bool = False

    def view(self) -> WorkerView:
        """As it reports."""
        running = len(self.streams)
        return WorkerView(
            key=self.key, model="m", ready=True, credit=Cost(8 * CHUNK, SLOTS - running, 1 << 30),
            sequences=running, waiting_tokens=sum(each.to_compute for each in self.streams),
            max_sequences=SLOTS, max_tokens=1 << 30, total_blocks=1 << 30, free_blocks=1 << 30,
            running_context=self._context(), step_model=self.model,
        )  # fmt: skip

    def step(self) -> tuple[float, list[Request]]:
        """Runs one: its seconds, and who gets a token at its end."""
        ready = [each for each in self.streams if not each.to_compute]
        seconds, room = self.model.decode_s(len(ready), self._context()), CHUNK
        for each in self.streams:
            part = min(room, each.to_compute)
            if part:
                before = each.prompt + each.made - each.to_compute
                seconds += part * (self.model.b + self.model.c * (before + part / 2))
                each.to_compute -= part
                room -= part
                if not each.to_compute:
                    ready.append(each)
        return seconds, ready

    def settled(self, now: float) -> list[Request]:
        """Streams that run there long enough to be moved."""
        return [each for each in self.streams if not each.to_compute and now - each.since_s >= STAY_S]

    def _context(self) -> int:
        return sum(each.prompt + each.made for each in self.streams if not each.to_compute)


class Play:
    """One run of one scene."""

    def __init__(self, scene: Scene, seed: int, settings: MovingSettings | None) -> None:
        self._settings = settings
        self._scheduler = Scheduler()
        self._sites: dict[str, Site] = {}
        self._requests: list[Request] = []
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._waiting: dict[int, Request] = {}
        self._order = count()
        self.ended: list[Request] = []
        for number, model in enumerate(scene.models):
            site = Site(f"w{number}", model)
            at_s = scene.joins_s[number] if scene.joins_s else 0.0
            self._at(at_s, lambda now, site=site: self._joins(site, now))  # type: ignore[misc]
        self._arrivals(scene, random.Random(seed))
        if settings is not None:
            self._at(SURVEY_S, self._survey)

    def run(self) -> list[Request]:
        """All streams, in the order of their ends."""
        while self._events and len(self.ended) < len(self._requests):
            now, _, event = heapq.heappop(self._events)
            event(now)
        return self.ended

    def _arrivals(self, scene: Scene, chance: random.Random) -> None:
        now = 0.0
        while (now := now + chance.expovariate(scene.rate)) < scene.seconds:
            prompt = max(16, round(chance.lognormvariate(6.5, 0.8)))
            output = max(1, round(scene.output * MEDIAN * chance.lognormvariate(0.0, 0.93)))
            number = len(self._requests)
            ticket = Ticket(
                number=number, model="m", tenant="t", latency_class=LatencyClass.STANDARD, arrival_s=now,
                cost=_cost(prompt), total_tokens=prompt + output, expected_output=scene.output,
            )  # fmt: skip
            self._requests.append(Request(ticket, prompt, output))
            self._at(now, lambda at, it=self._requests[-1]: self._arrives(it, at))  # type: ignore[misc]

    def _at(self, when_s: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), event))

    def _joins(self, site: Site, now: float) -> None:
        self._sites[site.key] = site
        self._place(now)

    def _arrives(self, request: Request, now: float) -> None:
        self._wait(request, request.ticket, now)
        self._place(now)

    def _wait(self, request: Request, ticket: Ticket, now: float) -> None:
        self._waiting[ticket.number] = request
        self._scheduler.submit(ticket, now)

    def _place(self, now: float) -> None:
        for site in self._sites.values():
            self._scheduler.worker_changed(site.view())
        while (assignment := self._scheduler.next(now)) is not None:
            request = self._waiting.pop(assignment.ticket.number)
            request.to_compute, request.since_s = request.prompt + request.made, now
            site = self._sites[assignment.worker]
            site.streams.append(request)
            if not site.stepping:
                self._step(site, now)

    def _step(self, site: Site, now: float) -> None:
        site.stepping = bool(site.streams)
        if site.streams:
            seconds, ready = site.step()
            self._at(now + seconds, lambda at: self._stepped(site, ready, at))

    def _stepped(self, site: Site, ready: list[Request], now: float) -> None:
        for each in ready:
            if each in site.streams:
                each.made += 1
                if each.made >= each.output:
                    each.end_s = now
                    site.streams.remove(each)
                    self.ended.append(each)
                    self._scheduler.ended(each.ticket.number)
        self._step(site, now)
        if len(self._scheduler):
            self._place(now)

    def _survey(self, now: float) -> None:
        assert self._settings is not None
        for site in self._sites.values():
            self._scheduler.worker_changed(site.view())
        fleet = self._scheduler.fleet("m")
        if not len(self._scheduler):
            slow = [self._sites[key] for key in slow_workers(fleet, self._settings)]
            there = {each.ticket.number: (site, each) for site in slow for each in site.settled(now)}
            streams = [Stream(each.now(), site.key) for site, each in there.values()]
            ages_s = [now - each.since_s for site in self._sites.values() for each in site.streams]
            for move in list(moves(streams, fleet, self._settings, arrivals_a_s(ages_s))):
                self._move(*there[move.number], now)
        self._at(now + SURVEY_S, self._survey)

    def _move(self, site: Site, request: Request, now: float) -> None:
        site.streams.remove(request)
        request.moved += 1
        self._wait(request, request.now(frozenset({site.key})), now)
        self._place(now)


def _cost(tokens: int) -> Cost:
    return Cost(tokens, 1, tokens // 64 + 1)


class Pair(NamedTuple):
    """The same requests, by number, in two runs."""

    moving: dict[int, Request]
    staying: dict[int, Request]


def _taken_s(run: dict[int, Request]) -> list[float]:
    return sorted(each.end_s - each.ticket.arrival_s for each in run.values())


def _left_s(pair: Pair, at_s: float) -> float:
    """Ratio of what was left of those that ran at a moment."""
    there = [n for n, each in pair.staying.items() if each.ticket.arrival_s < at_s < each.end_s]
    moving, staying = (sum(run[each].end_s - at_s for each in there) for run in pair)
    return moving / staying


def measured(scene: Scene, seeds: int) -> Iterator[Row]:
    """The rows of one scene: each seed with and without moving, and the ratio of the two."""
    pairs = [
        Pair(*({each.ticket.number: each for each in Play(scene, seed, how).run()} for how in _HOW))
        for seed in range(seeds)
    ]
    for name, figure in (("mean", mean), ("p95", lambda values: quantile(values, 0.95))):
        moving, staying = ([figure(_taken_s(pair[at])) for pair in pairs] for at in (0, 1))
        yield row(scene.name, f"end to end {name}, moving", "s", moving)
        yield row(scene.name, f"end to end {name}, staying", "s", staying)
        ratios = [on / off for on, off in zip(moving, staying, strict=True)]
        yield row(scene.name, f"{name}, moving to staying", "x", ratios, aim="<= 1.01 in every run",
                  met=max(ratios) <= 1.01)  # fmt: skip
    if scene.joins_s:
        ratios = [_left_s(pair, max(scene.joins_s)) for pair in pairs]
        yield row(scene.name, "left of what ran as it joined, moving to staying", "x", ratios,
                  aim="<= 1.01 in every run", met=max(ratios) <= 1.01)  # fmt: skip
    moved = [100 * mean(each.moved for each in pair.moving.values()) for pair in pairs]
    yield row(scene.name, "moves", "of 100 streams", moved)


def main() -> None:
    """Run, print the table, write the result."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--results", type=Path, default=RESULTS)
    given = flags.parse_args()
    rows = [each for scene in SCENES for each in measured(scene, given.seeds)]
    record("moving", rows, ("numpy",), results=given.results)


if __name__ == "__main__":
    main()
