"""The fleets and loads on which policies are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.sim import loads
from bench.sim.fleet import Fleet, Loss
from bench.sim.loads import Load
from bench.sim.outcome import Targets


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may choose. `size` multiplies the number of requests of every load."""

    azure: Path = loads.AZURE_EXCERPT
    mooncake: Path = loads.MOONCAKE_EXCERPT
    size: float = 1.0

    def count(self, requests: int) -> int:
        """So many requests, at this size."""
        return max(50, round(requests * self.size))


LoadMaker = Callable[[Options, int], Load]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A load on a fleet. `regime`: below, at or above the knee, where the fleet is saturated."""

    name: str
    fleet: Fleet
    load: LoadMaker
    regime: str = "below"
    targets: Targets = field(default_factory=Targets)


def h100(workers: int, **more: object) -> Fleet:
    """So many H100 with an 8B model."""
    return Fleet(devices=("h100-8b",) * workers, **more)  # type: ignore[arg-type]


MIXED_HARDWARE = Fleet(devices=("h100-8b",) * 2 + ("a100-8b",) * 2 + ("l4-8b",) * 4)
REASONABLE = Targets(ttft_s=2.0, tpot_s=0.1)  # where prompts are long or devices slow


def azure(speed: float, requests: int = 6000) -> LoadMaker:
    """The chat trace at so many times its speed."""
    return lambda options, seed: loads.azure(
        options.azure, speed=speed, count=options.count(requests), seed=seed
    )


def mooncake(speed: float, requests: int = 1200) -> LoadMaker:
    """The long-context trace at so many times its speed."""
    return lambda options, seed: loads.mooncake(
        options.mooncake, speed=speed, count=options.count(requests), seed=seed
    )


def shared(rate: float, requests: int = 4000) -> LoadMaker:
    """Shared prefixes at so many requests a second."""
    return lambda options, seed: loads.shared_prefix(rate=rate, count=options.count(requests), seed=seed)


def _mixed(speed: float) -> LoadMaker:
    return lambda options, seed: loads.mixed(azure(speed)(options, seed), seed)


def _bursts(speed: float) -> LoadMaker:
    return lambda options, seed: loads.bursts(azure(speed)(options, seed), seed)


ROUTING = (
    Experiment(name="Azure conv x9, 4 H100", fleet=h100(4), load=azure(9)),
    Experiment(name="Mooncake x1, 4 H100", fleet=h100(4), load=mooncake(1), targets=REASONABLE),
    Experiment(name="shared prefixes 15/s, 8 H100", fleet=h100(8), load=shared(15)),
    Experiment(name="mixed classes, Azure x7, 4 H100", fleet=h100(4), load=_mixed(7)),
    Experiment(name="identical bursts, Azure x6, 4 H100", fleet=h100(4), load=_bursts(6)),
    Experiment(name="Azure conv x9, 4 H100, 4 routers", fleet=h100(4, routers=4), load=azure(9)),
    Experiment(name="Azure conv x7, 4 H100, one lost", fleet=h100(4, loss=Loss(1, 30.0)), load=azure(7)),
    Experiment(name="shared prefixes 18/s, 8 H100", fleet=h100(8), load=shared(18), regime="at"),
    Experiment(name="shared prefixes 22/s, 8 H100", fleet=h100(8), load=shared(22), regime="above"),
)
HETERO = (
    Experiment(
        name="Azure conv x5, 2 H100 + 2 A100 + 4 L4",
        fleet=MIXED_HARDWARE,
        load=azure(5),
        targets=REASONABLE,
    ),
)
SCALE = (Experiment(name="Azure conv x1500, 1,000 H100", fleet=h100(1000), load=azure(1500, 100_000)),)
