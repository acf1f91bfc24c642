"""When the requests of an open loop should be sent, whatever the server does."""

from __future__ import annotations

import random
from collections.abc import Iterator


def constant(rate: float) -> Iterator[float]:
    """Seconds since the start, evenly spaced at `rate` a second, for ever."""
    number = 0
    while True:
        yield number / rate
        number += 1


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Seconds since the start with exponential gaps of mean 1/`rate`, for ever; equal seeds, equal times."""
    source = random.Random(seed)
    at_s = 0.0
    while True:
        at_s += source.expovariate(rate)
        yield at_s
