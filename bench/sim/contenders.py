"""Who competes: our policy, and those that others publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.sim.early import EarlyRouter
from bench.sim.fleet import DELAY_S, Fleet, Router, Run, run
from bench.sim.kernel import Kernel
from bench.sim.loads import Load
from bench.sim.published.aibrix import PrefixCache
from bench.sim.published.dynamo import DynamoLinear, DynamoLMetric
from bench.sim.published.llmd import Blend, Sticky
from bench.sim.published.lmetric import LMetric
from bench.sim.published.sglang import CacheAware
from bench.sim.published.simple import PowerOfTwo, RoundRobin
from bench.sim.published.smg import LeastLoad
from bench.sim.published.view import Policy
from bench.sim.router import HeadraceRouter, Variant

PUBLISHED: tuple[Callable[[], Policy], ...] = (
    RoundRobin,
    PowerOfTwo,
    CacheAware,
    LeastLoad,
    Blend,
    Sticky,
    PrefixCache,
    DynamoLinear,
    DynamoLMetric,
    LMetric,
)
OURS = "Headrace"
PLAIN = Variant()


@dataclass(frozen=True)
class Contender:
    """One policy. `make` is None for ours, which runs as `variant` says."""

    name: str
    make: Callable[[], Policy] | None = None
    variant: Variant = PLAIN

    def play(self, fleet: Fleet, load: Load, seed: int) -> Run:
        """Lets a load run on a fleet under this policy."""
        make = self.make
        if make is None:
            return run(fleet, load, self._ours, credited=True)

        def router(kernel: Kernel, index: int) -> Router:
            return EarlyRouter(kernel, make(), DELAY_S, seed, index)

        return run(fleet, load, router, credited=False)

    def _ours(self, kernel: Kernel, index: int) -> Router:
        return HeadraceRouter(kernel, index, DELAY_S, self.variant)


def published() -> list[Contender]:
    """All policies of others."""
    return [Contender(make().name, make) for make in PUBLISHED]
