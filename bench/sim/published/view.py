"""What a router that binds on arrival knows when it chooses. Lists are by worker."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Ask(NamedTuple):
    """A request."""

    prompt_tokens: int
    cached_tokens: list[int]  # of its prompt, on each worker, as far as the router knows


class Polled(NamedTuple):
    """What a worker's metrics said when they were last read."""

    waiting: int = 0  # requests
    running: int = 0
    waiting_tokens: int = 0  # uncached prompt tokens still to compute
    kv_used: float = 0.0  # 0 .. 1


@dataclass(slots=True)
class Pool:
    """The workers."""

    in_flight: list[int]  # requests given and not ended
    prefill_tokens: list[int]  # uncached prompt tokens given whose first token has not come
    active_tokens: list[int]  # prompt tokens of requests in flight
    decoding: list[int]  # requests in flight that have their first token
    since_poll_tokens: list[int]  # prompt tokens given since the last poll
    cache_tokens: list[int]  # tokens that the router believes to be cached
    polled: list[Polled]
    peak_rate: list[float]  # prompt tokens a second of a worker alone, where a policy is configured with it
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def __len__(self) -> int:
        return len(self.in_flight)

    @classmethod
    def idle(cls, workers: int, seed: int = 0, peak_rate: float = 36_000.0) -> Pool:
        """Workers with nothing to do."""
        return cls(
            in_flight=[0] * workers,
            prefill_tokens=[0] * workers,
            active_tokens=[0] * workers,
            decoding=[0] * workers,
            since_poll_tokens=[0] * workers,
            cache_tokens=[0] * workers,
            polled=[Polled()] * workers,
            peak_rate=[peak_rate] * workers,
            random=random.Random(seed),
        )

    def least(self, costs: list[float], among: list[int] | None = None) -> int:
        """The worker of least cost, one of them at random where several are equal."""
        places = range(len(costs)) if among is None else among
        best = min([costs[place] for place in places])
        equal = [place for place in places if costs[place] <= best]
        return equal[0] if len(equal) == 1 else self.random.choice(equal)


class Policy(Protocol):
    """One published policy."""

    @property
    def name(self) -> str:
        """As its makers call it."""

    @property
    def poll_s(self) -> float | None:
        """How often it reads workers' metrics; None: it does not."""

    @property
    def own_history(self) -> bool:
        """Whether its prefix index is what it gave to whom; else workers tell it what they hold."""

    def choose(self, ask: Ask, pool: Pool) -> int:
        """The worker to give the request to."""
