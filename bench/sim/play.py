"""Plays experiments: every contender on every load with every seed, on as many processes as are given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bench.sim.contenders import Contender
from bench.sim.experiments import Experiment, Options
from bench.sim.outcome import Outcome, outcome
from bench.sim.request import Story

Splitter = Callable[[Sequence[Story]], dict[str, list[Story]]]
"""Parts of a run's stories by name; ALL is always there."""
ALL = "all"


@dataclass(frozen=True)
class Task:
    """One run; a process can be told it."""

    experiment: str
    contender: str
    seed: int


class Played(NamedTuple):
    """What a run came to."""

    task: Task
    parts: dict[str, Outcome]
    figures: dict[str, float]
    cpu_s: float


@dataclass(frozen=True)
class Match:
    """Experiments, contenders, and how to look at a run beyond its outcome."""

    experiments: Sequence[Experiment]
    contenders: Sequence[Contender]
    options: Options
    split: Splitter | None = None
    measure: Callable[[Experiment, Sequence[Story]], dict[str, float]] | None = None

    def tasks(self, seeds: int) -> list[Task]:
        """All runs, those of one load together."""
        return [
            Task(experiment.name, contender.name, seed)
            for experiment in self.experiments
            for seed in range(seeds)
            for contender in self.contenders
        ]

    def play(self, task: Task) -> Played:
        """One run."""
        began_s = time.process_time()
        experiment = next(each for each in self.experiments if each.name == task.experiment)
        contender = next(each for each in self.contenders if each.name == task.contender)
        played = contender.play(experiment.fleet, experiment.load(self.options, task.seed), task.seed)
        parts = {ALL: played.stories, **(self.split(played.stories) if self.split else {})}
        figures = self.measure(experiment, played.stories) if self.measure else {}
        cpu_s = time.process_time() - began_s
        outcomes = {name: outcome(stories, experiment.targets) for name, stories in parts.items() if stories}
        return Played(task, outcomes, {**figures, "utilisation": played.utilisation, "cpu_s": cpu_s}, cpu_s)


_match: Match | None = None  # of this process, when it is one of a pool


def _begin(make: Callable[[], Match]) -> None:
    global _match
    _match = make()


def _one(task: Task) -> Played:
    assert _match is not None
    return _match.play(task)


class Keeper(Protocol):
    """Knows runs that were played before."""

    def find(self, task: Task, contender: Contender) -> Played | None:
        """The run, if it was."""

    def keep(self, played: Played, contender: Contender) -> None:
        """Takes one that was not."""


def play_all(
    make: Callable[[], Match], seeds: int, jobs: int, keeper: Keeper | None = None
) -> Iterator[Played]:
    """All runs of a match: those that were kept at once, then the others as they end.

    `make` is called once in each process.
    """
    match = make()
    contenders = {each.name: each for each in match.contenders}
    tasks = []
    for task in match.tasks(seeds):
        found = keeper.find(task, contenders[task.contender]) if keeper else None
        if found is None:
            tasks.append(task)
        else:
            yield found
    for played in _play(make, match, tasks, jobs):
        if keeper is not None:
            keeper.keep(played, contenders[played.task.contender])
        yield played


def _play(make: Callable[[], Match], match: Match, tasks: Sequence[Task], jobs: int) -> Iterator[Played]:
    if jobs == 1:
        yield from (match.play(task) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, initializer=_begin, initargs=(make,)) as pool:
        yield from pool.map(_one, tasks)


class Table:
    """Outcomes by experiment, contender and part, the seeds in order."""

    def __init__(self, played: Iterable[Played], say: Callable[[Played], None] = lambda _: None) -> None:
        self._rows: dict[tuple[str, str], list[Played]] = {}
        for each in played:
            say(each)
            self._rows.setdefault((each.task.experiment, each.task.contender), []).append(each)
        for rows in self._rows.values():
            rows.sort(key=lambda each: each.task.seed)

    def contenders(self, experiment: str) -> list[str]:
        """Who ran."""
        return [contender for name, contender in self._rows if name == experiment]

    def values(self, experiment: str, contender: str, metric: str, part: str = ALL) -> list[float]:
        """A figure of each seed."""
        return [
            float(getattr(each.parts[part], metric))
            for each in self._rows[experiment, contender]
            if part in each.parts
        ]

    def figures(self, experiment: str, contender: str, name: str) -> list[float]:
        """A figure that was measured beside the outcome, of each seed."""
        return [each.figures[name] for each in self._rows[experiment, contender]]

    @property
    def cpu_s(self) -> float:
        """Of all runs."""
        return sum(each.cpu_s for rows in self._rows.values() for each in rows)
