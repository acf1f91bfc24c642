"""The results contract: a JSON document with one row a figure, and where and how it was measured."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from services.cli.bench.report import ALL, Figures, Report
from services.cli.bench.stats import Summary

Row = dict[str, Any]
PACKAGES = ("headrace", "grpcio", "protobuf")


class Metric(NamedTuple):
    """One figure of one run."""

    name: str
    unit: str
    value: float


def document(name: str, case: str, reports: Sequence[Report]) -> dict[str, Any]:
    """The document of the repeats of one case."""
    return {
        "name": name,
        "command": shlex.join(["headrace", *sys.argv[1:]]),
        "when": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "rows": rows(case, reports),
    }


def rows(case: str, reports: Sequence[Report]) -> list[Row]:
    """A row a class and figure: the median of the repeats, between the least and the greatest."""
    found: list[Row] = []
    for name in dict.fromkeys(name for report in reports for name in report.by_class):
        runs = [list(metrics(report.by_class[name])) for report in reports if name in report.by_class]
        label = case if name == ALL else f"{case}, {name}"
        by_name: dict[tuple[str, str], list[float]] = {}
        for metric in (metric for run in runs for metric in run):
            by_name.setdefault((metric.name, metric.unit), []).append(metric.value)
        found += [_row(label, *key, values) for key, values in by_name.items()]
    costs = [report.generator_cpu_us_per_message for report in reports]
    if known := [cost for cost in costs if cost is not None]:
        found.append(_row(case, "generator_cpu_per_message", "us", known))
    return found


def metrics(figures: Figures) -> Iterator[Metric]:
    """All figures of some requests of one run. Times in milliseconds."""
    yield Metric("requests", "1", figures.requests)
    yield Metric("failed", "1", figures.requests - figures.ok)
    yield Metric("retries", "1", figures.retries)
    yield Metric("resumes", "1", figures.resumes)
    yield Metric("cached_responses", "1", figures.cached_responses)
    yield Metric("requests_per_s", "1/s", figures.requests_per_s)
    yield Metric("goodput", "1/s", figures.goodput_rps)
    yield Metric("good_share", "1", figures.good / figures.requests)
    yield Metric("tokens_per_s", "tok/s", figures.tokens_per_s)
    for name in ("ttft", "itl", "tpot", "e2e", "send_lag"):
        summary: Summary | None = getattr(figures, name)
        if summary is not None:
            for part in ("p50", "p90", "p99", "max"):
                yield Metric(f"{name}_{part}", "ms", getattr(summary, part) * 1000)


def _row(case: str, metric: str, unit: str, values: Sequence[float]) -> Row:
    return {
        "case": case,
        "metric": metric,
        "unit": unit,
        "value": float(statistics.median(values)),
        "spread": [float(min(values)), float(max(values))],
        "repeats": len(values),
        "aim": None,
        "met": None,
        "peer": None,
        "peer_value": None,
    }


def machine() -> dict[str, Any]:
    """This machine, as this process may use it. The GPU is the servers' matter: they may be elsewhere."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "gpu": None,
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or "unknown"


def _commit() -> str:
    """The checkout's commit where there is one, with + for local changes."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
