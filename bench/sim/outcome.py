"""What a run came to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bench.sim.request import Story


class Targets(NamedTuple):
    """What counts as served well."""

    ttft_s: float = 1.0
    tpot_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run, or of a part of its requests. Seconds, unless the name says otherwise."""

    requests: int
    finished: int
    refused: int
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    tpot_mean: float
    tpot_p99: float
    e2e_mean: float
    goodput: float  # % of all requests that were served within the targets
    hit: float  # % of prompt tokens found in a cache
    output_rate: float  # tokens a second, until the last end
    moves: int


def outcome(stories: Iterable[Story], targets: Targets) -> Outcome:
    """Of these requests."""
    told = list(stories)
    done = [story for story in told if story.end_s is not None]
    assert done, "no request was finished"
    ttft = np.array([story.ttft_s for story in done])
    tpot = np.array([story.tpot_s for story in done if story.output_tokens > 1] or [0.0])
    good = sum(_well_served(story, targets) for story in done)
    end_s = max(story.end_s or 0.0 for story in done) - min(story.request.arrival_s for story in told)
    return Outcome(
        requests=len(told),
        finished=len(done),
        refused=sum(story.refused is not None for story in told),
        ttft_mean=float(ttft.mean()),
        ttft_p50=_percentile(ttft, 50),
        ttft_p90=_percentile(ttft, 90),
        ttft_p99=_percentile(ttft, 99),
        tpot_mean=float(tpot.mean()),
        tpot_p99=_percentile(tpot, 99),
        e2e_mean=float(np.mean([story.e2e_s for story in done])),
        goodput=100.0 * good / len(told),
        hit=100.0
        * sum(story.cached_tokens for story in done)
        / sum(story.request.prompt_tokens for story in done),
        output_rate=sum(story.output_tokens for story in done) / max(end_s, 1e-9),
        moves=sum(story.moves for story in told),
    )


def _well_served(story: Story, targets: Targets) -> bool:
    return story.ttft_s <= targets.ttft_s and (story.output_tokens <= 1 or story.tpot_s <= targets.tpot_s)


def _percentile(values: np.ndarray[tuple[int], np.dtype[np.float64]], part: float) -> float:
    return float(np.percentile(values, part))


def jain(amounts: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1 / n where one has everything."""
    total = sum(amounts)
    squares = sum(each * each for each in amounts)
    return total * total / (len(amounts) * squares) if squares else 1.0
