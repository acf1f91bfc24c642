"""Exact statistics over all samples: nothing is binned, nothing is estimated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """A distribution in a few figures, in the unit of its samples."""

    samples: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The nearest-rank quantile: the least sample with at least `fraction` of all samples at or below it.

    Args:
        ordered: samples in ascending order, at least one.
        fraction: in (0, 1].
    """
    return ordered[max(0, math.ceil(fraction * len(ordered) - _ROUNDING) - 1)]


_ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001


def summarize(samples: Iterable[float]) -> Summary | None:
    """The summary; None where there are no samples."""
    ordered = sorted(samples)
    if not ordered:
        return None
    p50, p90, p99 = (quantile(ordered, fraction) for fraction in (0.5, 0.9, 0.99))
    return Summary(len(ordered), statistics.fmean(ordered), p50, p90, p99, ordered[-1])
