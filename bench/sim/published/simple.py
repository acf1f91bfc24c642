"""Policies that every load balancer has."""

from __future__ import annotations

from itertools import count

from bench.sim.published.view import Ask, Pool


class RoundRobin:
    """One after the other."""

    name, poll_s, own_history = "round robin", None, True

    def __init__(self) -> None:
        self._next = count()

    def choose(self, ask: Ask, pool: Pool) -> int:
        return next(self._next) % len(pool)


class PowerOfTwo:
    """The one of two random workers with fewer requests in flight.

    Source: Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001.
    """

    name, poll_s, own_history = "power of two", None, True

    def choose(self, ask: Ask, pool: Pool) -> int:
        one, other = pool.random.sample(range(len(pool)), 2) if len(pool) > 1 else (0, 0)
        return one if pool.in_flight[one] <= pool.in_flight[other] else other
