"""Rows from interleaved runs: each contender's figures, and its ratio to another of the same round."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from bench.relay.trial import Cost
from bench.results_contract import Row, row

Runs = Mapping[str, Sequence[Cost]]


def figures(case: str, runs: Sequence[Cost]) -> Iterator[Row]:
    """All that was seen of one contender."""
    yield row(case, "CPU a token", "µs", [each.cpu_us for each in runs])
    yield row(case, "CPU a token, flow alone", "µs", [each.flow_cpu_us for each in runs])
    yield row(case, "a message", "tokens", [each.tokens_a_message for each in runs])
    yield row(case, "between messages p50", "ms", [each.gap_p50_ms for each in runs])
    yield row(case, "between messages p99", "ms", [each.gap_p99_ms for each in runs])
    yield row(case, "first token p50", "ms", [each.first_p50_ms for each in runs])
    calls = [each.call_cpu_us for each in runs if each.call_cpu_us is not None]
    if calls:
        yield row(case, "calls for one token", "1/s a core", [1e6 / each for each in calls])


def ratios(runs: Runs, case: str, base: str, at_most: float | None = None) -> Iterator[Row]:
    """CPU of one contender against another of the same run, whole and flow alone; the aim is on the whole."""
    for metric, name in (("cpu_us", "CPU a token"), ("flow_cpu_us", "CPU a token, flow alone")):
        pairs = zip(runs[case], runs[base], strict=True)
        samples = [getattr(mine, metric) / getattr(theirs, metric) for mine, theirs in pairs]
        aimed = at_most is not None and metric == "cpu_us"
        yield row(
            case,
            f"{name} / peer's",
            "×",
            samples,
            aim=f"<= {at_most:g}" if aimed else None,
            met=statistics.median(samples) <= at_most if aimed and at_most is not None else None,
            peer=base,
        )
