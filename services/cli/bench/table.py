"""The figures for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from services.cli import output
from services.cli.bench.mix import Target
from services.cli.bench.report import ALL, Figures, Report
from services.cli.bench.stats import Summary

LATENCIES = (("TTFT", "ttft"), ("ITL", "itl"), ("TPOT", "tpot"), ("E2E", "e2e"), ("send lag", "send_lag"))


def show(case: str, reports: Sequence[Report], targets: Mapping[str, Target]) -> None:
    """Prints every repeat, and what counted as good."""
    for number, report in enumerate(reports, start=1):
        repeat = f", repeat {number} of {len(reports)}" if len(reports) > 1 else ""
        print(f"{case}{repeat}")
        _counts(report)
        _latencies(report)
        _errors(report)
        if cached := report.by_class[ALL].cached_responses:
            print(f"{cached} answers came from the response cache: the model did not make them again")
        if (cost := report.generator_cpu_us_per_message) is not None:
            print(f"the generator itself: {cost:.0f} µs of CPU a message")
    print(f"good: {'; '.join(_told(name, target) for name, target in targets.items())} (--target)")
    sys.stdout.flush()


def _told(name: str, target: Target) -> str:
    """What a request of the class had to keep."""
    bounds = [
        f"{seconds:g} s {until}"
        for seconds, until in zip(target, ("to the first token", "a token"), strict=True)
        if seconds is not None
    ]
    return f"{name} {', '.join(bounds) or 'whenever it is answered'}"


def _counts(report: Report) -> None:
    columns = ("Class", "Requests", "OK", "Good", "Goodput/s", "Tokens/s", "Retries", "Seconds")
    output.table(columns, [_count(name, each) for name, each in report.by_class.items()])


def _count(name: str, each: Figures) -> tuple[object, ...]:
    good = f"{each.good / each.requests:.0%}"
    rates = (f"{each.goodput_rps:.2f}", f"{each.tokens_per_s:.1f}")
    return (name, each.requests, each.ok, good, *rates, each.retries, f"{each.seconds:.2f}")


def _latencies(report: Report) -> None:
    rows = [
        (name, label, *_milliseconds(summary))
        for name, figures in report.by_class.items()
        for label, attribute in LATENCIES
        if (summary := getattr(figures, attribute)) is not None
    ]
    if rows:
        output.table(("Class", "ms", "p50", "p90", "p99", "max"), rows)


def _milliseconds(summary: Summary) -> list[str]:
    return [f"{value * 1000:.1f}" for value in (summary.p50, summary.p90, summary.p99, summary.max)]


def _errors(report: Report) -> None:
    rows = [
        (name, error, found.requests, " ".join(found.said.split()))
        for name, figures in report.by_class.items()
        for error, found in figures.errors.items()
    ]
    if rows:
        output.table(("Class", "Error", "Requests", "The first of them"), rows)
