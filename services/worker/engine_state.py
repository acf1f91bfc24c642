"""What the engine last said of itself, as metrics: looked at when somebody asks, not once a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.worker.engine.report import StepReport

STEP_TERMS = ("step", "token", "attention", "context", "sequence")


class EngineState(Collector):
    """Exposes the last report; nothing before the first."""

    def __init__(self) -> None:
        self.last: StepReport | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families."""
        return iter(()) if self.last is None else _families(self.last)


def _families(report: StepReport) -> Iterator[GaugeMetricFamily]:
    load = report.load
    blocks = {"free": load.blocks_free, "cached": load.blocks_cached, "held": load.blocks_held}
    yield _by(
        "requests",
        "Requests, by state (running, waiting)",
        "state",
        {"running": load.running, "waiting": load.waiting},
    )
    yield _one("waiting_tokens", "Prompt tokens still to compute", load.waiting_uncached_tokens)
    yield _by("kv_blocks", "KV blocks, by state (free, cached, held)", "state", blocks)
    yield _one(
        "kv_usage_ratio",
        "KV blocks that running requests hold, part of all; cached ones can be taken",
        load.blocks_held / max(1, sum(blocks.values())),
    )
    yield _by(
        "step_model_seconds",
        "Learned cost of a step, by term (step, and each token, attention pair, context token, sequence)",
        "term",
        dict(zip(STEP_TERMS, report.step_model.coefficients, strict=True)),
    )


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"headrace_worker_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"headrace_worker_{name}", text, value=value)
