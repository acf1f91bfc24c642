"""How fast workers are, in seconds, and what to believe of it.

A worker fits the cost of its own steps and tells it. What is missing, not a number, zero, negative or absurd
is replaced: by the model in the pool's middle where there is one, else by a prior. A claim to be slow is
believed (it costs only the one that makes it), a claim to be far faster than the pool is not.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

CHUNK_TOKENS = 2048
"""Prefill tokens of a step at which speeds are compared."""
GRAIN = 1.25
"""Speeds that differ by less than about half of it are equal."""
CONTEXT_TOKENS = 1024
"""Context of a decode at which speeds are compared."""
MOST_FASTER = 8.0
"""Than the pool's median: what a single worker is believed at most."""
MOST_APART = 1000.0
"""From the pool's median: beyond it a claim is nonsense."""
_MOST_QUANTILE = 2.0
_NEWS = 0.02
_MOST_SECONDS = 1e3


class StepModel(NamedTuple):
    """Seconds of a step: a + b·tokens + c·prefill attention + d·context + e·sequences."""

    a: float
    b: float
    c: float
    d: float
    e: float
    upper_quantile: float = 1.0
    """Of actual over predicted."""

    def prefill_s(self, tokens: float, before: float = 0.0) -> float:
        """Seconds of computing `tokens` that follow `before`, in chunks and alone."""
        steps = max(1.0, tokens / CHUNK_TOKENS)
        return steps * self.a + tokens * self.b + tokens * (before + tokens / 2) * self.c

    def decode_s(self, sequences: float = 1.0, context: float = CONTEXT_TOKENS) -> float:
        """Seconds of a step that gives each of `sequences` one token; `context`: of all together."""
        return self.a + sequences * (self.b + self.e) + context * self.d


PRIOR = StepModel(2e-3, 1e-4, 1e-9, 1e-8, 1e-5)
"""Of a worker of which nothing is known: 10,000 tokens a second."""


def alike(one: StepModel | None, other: StepModel | None) -> bool:
    """Whether two claims of one worker are so near each other that nothing need be worked out anew."""
    if one is None or other is None:
        return one is other
    told = (one.prefill_s(CHUNK_TOKENS), one.decode_s(), one.upper_quantile)
    tells = (other.prefill_s(CHUNK_TOKENS), other.decode_s(), other.upper_quantile)
    return all(abs(new - old) <= _NEWS * abs(old) for old, new in zip(told, tells, strict=True))


class Speeds(NamedTuple):
    """Calibrated seconds by position."""

    models: Floats  # [6, positions], what is believed of each StepModel
    token_s: Floats  # [positions], a prefill token of a chunk, without attention; as the next two in grains
    attention_s: Floats  # [positions], a (new token × preceding token); in grains
    slowness: Floats  # [positions], a decode step against the pool's median; in grains


def believed(claimed: Floats) -> Speeds:
    """Speeds from claims [6, positions]; a column with anything but finite numbers >= 0 claims nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        sane: Mask = np.logical_and.reduce(np.isfinite(claimed) & (claimed >= 0), axis=0)
        for seconds in (_token_s(claimed), _decode_s(claimed)):
            sane &= (seconds > 0) & (seconds < _MOST_SECONDS)
            median = _upper_median(seconds[sane])
            sane &= (seconds > median / MOST_APART) & (seconds < median * MOST_APART)
    models = _no_faster_than_the_pool(np.where(sane, claimed, _middle(claimed[:, sane])[:, None]), sane)
    step_s = _decode_s(models)
    slowness: Floats = step_s / _upper_median(step_s[sane] if sane.any() else step_s)
    return Speeds(models, _in_grains(_token_s(models)), _in_grains(models[2]), _in_grains(slowness))


def _in_grains(values: Floats) -> Floats:
    """Values as the nearest of a scale of grains around their median: alike workers count as equal.

    What each has learned of itself differs by what it was given; a score that follows such differences gives
    more to who seems fast.
    """
    middle = _upper_median(values)
    if middle <= 0.0:
        return values
    grains = np.round(np.log(np.maximum(values, 1e-300) / middle) / log(GRAIN))
    scaled: Floats = np.where(values > 0.0, middle * GRAIN**grains, values)
    return scaled


def _no_faster_than_the_pool(models: Floats, sane: Mask) -> Floats:
    """Prompts and decodes apart: a GPU beside CPUs is not believed its prompts, and decodes as it says."""
    a, b, c, d, e, quantile = models
    slower = np.maximum(1.0, _least(_decode_s(models), sane) / _decode_s(models))
    a, d = a * slower, d * slower
    token_s = _token_s(models)
    least_s = _least(token_s, sane)
    shown = np.maximum(b, least_s - a / CHUNK_TOKENS)
    c = c * np.maximum(1.0, least_s / token_s)
    e = np.maximum(-shown, e * slower + (b * slower - shown))  # a decode has both
    return np.stack([a, shown, c, d, e, np.clip(quantile, 1.0, _MOST_QUANTILE)])


def _least(seconds: Floats, sane: Mask) -> float:
    return _upper_median(seconds[sane]) / MOST_FASTER


def _middle(models: Floats) -> Floats:
    """The model of the worker in the middle, or the prior."""
    if not models.shape[1]:
        return np.array(PRIOR)
    return models[:, np.argsort(_token_s(models), kind="stable")[models.shape[1] // 2]]


def _upper_median(seconds: Floats) -> float:
    """The slower of two in the middle; 0 of none."""
    middle = len(seconds) // 2
    return float(np.partition(seconds, middle)[middle]) if len(seconds) else 0.0


def _token_s(models: Floats) -> Floats:
    seconds: Floats = models[0] / CHUNK_TOKENS + models[1]
    return seconds


def _decode_s(models: Floats) -> Floats:
    seconds: Floats = models[0] + models[1] + models[4] + CONTEXT_TOKENS * models[3]
    return seconds
