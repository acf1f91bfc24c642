"""What share of the requests asks for which latency class, and what each class promises."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple

CLASSES = ("interactive", "standard", "batch")
INFERRED = ""
"""No class is asked for: the router infers it."""


class Target(NamedTuple):
    """What a request of a class must keep to count as good. None: no bound."""

    ttft_s: float | None
    tpot_s: float | None


TARGETS: Mapping[str, Target] = {
    "interactive": Target(0.5, 0.04),
    "standard": Target(2.0, 0.08),
    "batch": Target(None, None),
}


class Mix:
    """Draws a class a request; equal seeds, equal draws."""

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        self._classes = list(weights)
        self._weights = list(weights.values())
        self._random = random.Random(seed)

    def draw(self) -> str:
        """The class of the next request."""
        return self._random.choices(self._classes, self._weights)[0]


def parse_mix(text: str | None) -> dict[str, float]:
    """Weights by class from `interactive=0.7,batch=0.3`. Raises ValueError with what is allowed."""
    if not text:
        return {INFERRED: 1.0}
    found: dict[str, float] = {}
    for name, value in _pairs(text):
        found[name] = _number(value, f"the share of {name}")
    if sum(found.values()) <= 0:
        raise ValueError("at least one class needs a share above 0")
    return found


def parse_targets(texts: list[str]) -> dict[str, Target]:
    """The targets with those of `interactive=0.5/0.04` (seconds to the first token / a token) put in.

    Raises:
        ValueError: with what is allowed. `-` stands for no bound.
    """
    found = dict(TARGETS)
    for text in texts:
        for name, value in _pairs(text):
            ttft, slash, tpot = value.partition("/")
            if not slash:
                raise ValueError(f"{name}={value}: write CLASS=TTFT/TPOT in seconds, '-' for no bound")
            found[name] = Target(*(_bound(each, name) for each in (ttft, tpot)))
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in CLASSES:
            raise ValueError(f"{name!r} is no class; there are {', '.join(CLASSES)}")
        pairs.append((name, value))
    return pairs


def _bound(text: str, name: str) -> float | None:
    return None if text == "-" else _number(text, f"a target of {name}")


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{what} must be a number of at least 0, not {text!r}")
    return value
