"""From outcomes to the rows of the result."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.peers.cases import Aim, Case
from bench.peers.outcome import Outcome, agreement
from bench.peers.peers import Peer
from bench.results_contract import Row, row

METRICS = {
    "tokens_per_s": "tok/s",
    "tokens_per_cpu_s": "tok/core-s",
    "ttft_ms": "ms",
    "tpot_ms": "ms",
}


@dataclass
class Runs:
    """Of one peer in one case, by repeat; a repeat that failed is not there."""

    title: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def samples(self, metric: str) -> list[float]:
        """Of all repeats that have it."""
        values = (getattr(outcome, metric) for outcome in self.outcomes.values())
        return [value for value in values if value is not None]

    @property
    def same(self) -> float | None:
        """Part of its ids that a repeat begins with as the first one did, the least; None of one repeat."""
        first, *others = self.outcomes.values()
        return min((agreement(first, other) for other in others), default=None)


def rows_of(case: Case, runs: Mapping[str, Runs]) -> Iterator[Row]:
    """Each peer's figures, then the ratios that were aimed at; `runs` are by the peers' names."""
    for entry in case.entries:
        if (found := runs.get(entry.peer.name)) is not None:
            yield from _peer_rows(case, found)
    yield from ratio_rows(case, runs)


def ratio_rows(case: Case, runs: Mapping[str, Runs]) -> Iterator[Row]:
    """The aims of a case, as far as there are figures of both."""
    for aim in case.aims:
        if (ratio := _ratio_row(case, aim, runs)) is not None:
            yield ratio


def ratios(ours: Runs, peer: Runs, metric: str) -> list[float]:
    """Ours over the peer's within each repeat that both have."""
    both = sorted(ours.outcomes.keys() & peer.outcomes.keys())
    return [getattr(ours.outcomes[each], metric) / getattr(peer.outcomes[each], metric) for each in both]


def _samples(aim: Aim, runs: Mapping[str, Runs]) -> list[float]:
    ours, peer = runs.get(aim.ours.name), runs.get(aim.peer.name)
    return ratios(ours, peer, aim.metric) if ours and peer else []


def _peer_rows(case: Case, runs: Runs) -> Iterator[Row]:
    for metric, unit in METRICS.items():
        if samples := runs.samples(metric):
            yield row(f"{case.title}: {runs.title}", metric, unit, samples)


def _ratio_row(case: Case, aim: Aim, runs: Mapping[str, Runs]) -> Row | None:
    if not (samples := _samples(aim, runs)):
        return None
    return row(
        f"{case.title}: {_over(aim.ours, aim.peer)}",
        f"ratio of {aim.metric}",
        "×",
        samples,
        aim=f">= {aim.factor:g}",
        met=statistics.median(samples) >= aim.factor,
        peer=runs[aim.peer.name].title,
    )


def _over(ours: Peer, peer: Peer) -> str:
    return f"{ours.name} / {peer.name}"
