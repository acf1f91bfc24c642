"""One run: a load, workers, routers, and virtual time from the first arrival to the last end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bench.sim.kernel import Kernel
from bench.sim.loads import Load
from bench.sim.request import Story
from bench.sim.worker import Listener, SimWorker
from services.worker.scheduler.policy import SchedulerSettings

DELAY_S = 0.0005  # of a message
_RUN_OUT_S = 7200.0  # after the last arrival


class Router(Listener, Protocol):
    """A router as the run sees it."""

    def attach(self, workers: list[SimWorker]) -> None:
        """The workers, once."""

    def arrive(self, story: Story) -> None:
        """A request comes."""

    def read(self) -> None:
        """Takes note of all frames that have come by now."""

    def lost(self, worker: int) -> None:
        """A worker is known to be gone."""


class Loss(NamedTuple):
    """A worker that dies, and when routers know it."""

    worker: int
    at_s: float
    known_after_s: float = 0.25


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What a load runs on."""

    devices: tuple[str, ...]  # calibrations
    routers: int = 1
    max_seqs: int = 256
    loss: Loss | None = None
    leaps: bool = True
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)


@dataclass(frozen=True)
class Run:
    """What happened."""

    stories: list[Story]
    workers: list[SimWorker]
    routers: Sequence[Router]
    end_s: float

    @property
    def utilisation(self) -> float:
        """Share of the time that workers computed."""
        return sum(each.busy_s for each in self.workers) / (len(self.workers) * max(self.end_s, 1e-9))


RouterMaker = Callable[[Kernel, int], Router]


def run(fleet: Fleet, load: Load, make_router: RouterMaker, *, credited: bool) -> Run:
    """Lets a load run to its end; arrivals go to the routers in turn."""
    kernel = Kernel()
    kernel.now = -2 * DELAY_S  # workers have said what they are when the first request comes
    routers = [make_router(kernel, index) for index in range(fleet.routers)]
    workers = [
        SimWorker(
            kernel,
            index,
            name,
            list(routers),
            credited=credited,
            max_seqs=fleet.max_seqs,
            leaps=fleet.leaps,
            settings=fleet.scheduler,
        )
        for index, name in enumerate(fleet.devices)
    ]
    for router in routers:
        router.attach(workers)
    for worker in workers:
        worker.hello()
    stories = [Story(request) for request in load]
    for story in stories:
        kernel.at(story.request.arrival_s, _arrival(routers[story.request.number % len(routers)], story))
    if fleet.loss is not None:
        _lose(kernel, routers, workers, fleet.loss)
    kernel.run(load[-1].arrival_s + _RUN_OUT_S)
    kernel.now += DELAY_S
    for router in routers:
        router.read()
    return Run(stories, workers, routers, max((story.end_s or 0.0 for story in stories), default=0.0))


def _arrival(router: Router, story: Story) -> Callable[[], None]:
    return lambda: router.arrive(story)


def _lose(kernel: Kernel, routers: list[Router], workers: list[SimWorker], loss: Loss) -> None:
    kernel.at(loss.at_s, workers[loss.worker].die)
    for router in routers:
        kernel.at(loss.at_s + loss.known_after_s, _forget(router, loss.worker))


def _forget(router: Router, worker: int) -> Callable[[], None]:
    return lambda: router.lost(worker)
