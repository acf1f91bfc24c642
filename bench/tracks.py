"""When the tokens of requests came, and what follows from it: TTFT, TPOT, ITL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.worker.scheduler.events import Finished
from services.worker.scheduler.request import LatencyClass


@dataclass(slots=True)
class Track:
    """One request; seconds on one clock, as its submitter saw them."""

    submitted_s: float
    latency_class: LatencyClass = LatencyClass.STANDARD
    prompt_tokens: int = 0
    token_s: list[float] = field(default_factory=list)  # when each output token was seen
    finished: Finished | None = None

    @property
    def ttft_s(self) -> float:
        """Submission to first token."""
        return self.token_s[0] - self.submitted_s

    @property
    def tpot_s(self) -> float:
        """Mean time of the tokens after the first; needs two."""
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies: between each token and the next."""
        return [later - earlier for earlier, later in zip(self.token_s, self.token_s[1:], strict=False)]


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` % of them do not exceed, between neighbours in proportion; 0 of none."""
    return float(np.percentile(values, part)) if len(values) else 0.0


def ttfts_s(tracks: Iterable[Track]) -> list[float]:
    """Of those that have a token."""
    return [track.ttft_s for track in tracks if track.token_s]


def tpots_s(tracks: Iterable[Track]) -> list[float]:
    """Of those that have two tokens."""
    return [track.tpot_s for track in tracks if len(track.token_s) > 1]


def gaps_s(tracks: Iterable[Track], start_s: float = 0.0, end_s: float = float("inf")) -> list[float]:
    """Inter-token latencies that begin and end between two times."""
    return [
        later - earlier
        for track in tracks
        for earlier, later in zip(track.token_s, track.token_s[1:], strict=False)
        if start_s <= earlier and later <= end_s
    ]
