"""What the engine reports, as metrics: added up once a step, put into families when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.worker.engine.report import Progress, StepReport

STEP_TERMS = ("step", "token", "attention", "context", "sequence")
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Spread:
    """A histogram at a tenth of the cost of one that many threads may write to."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """So many more."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self) -> HistogramMetricFamily:
        """All that was observed."""
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class EngineState(Collector):
    """Exposes totals, and the last report; of that nothing before the first."""

    def __init__(self) -> None:
        self.cached_tokens = 0
        self.last: StepReport | None = None
        self._prompt_tokens = self._output_tokens = self._steps = 0
        self._uncounted: list[tuple[Progress, int]] = []  # each with the steps that it stands for
        self._batch = Spread("headrace_worker_batch_size", "Sequences in a step", COUNTS)
        self._tokens = Spread("headrace_worker_step_tokens", "Tokens in a step", TOKENS)
        self._seconds = Spread("headrace_worker_step_seconds", "Duration of a step", STEP_S)

    def report(self, report: StepReport) -> None:
        """Takes what a report adds."""
        self.last = report
        for prompt_tokens, output_tokens in report.served.values():
            self._prompt_tokens += prompt_tokens
            self._output_tokens += output_tokens
        if report.progress.finished_steps > self._steps:
            self.stepped(report.progress)
        self._count_steps()

    def stepped(self, progress: Progress) -> None:
        """Takes the last finished step, which is a new one; it is counted with the next report.

        Steps that were not told, because their tokens waited for others, count as that one.
        """
        self._uncounted.append((progress, progress.finished_steps - self._steps))
        self._steps = progress.finished_steps

    def _count_steps(self) -> None:
        for progress, steps in self._uncounted:
            self._batch.observe(progress.batch_size, steps)
            self._tokens.observe(progress.step_tokens, steps)
            self._seconds.observe(progress.step_s, steps)
        self._uncounted.clear()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        tokens = CounterMetricFamily(
            "headrace_worker_tokens",
            "Tokens: prompt (computed), cached (found instead), output",
            labels=["kind"],
        )
        tokens.add_metric(["prompt"], self._prompt_tokens)
        tokens.add_metric(["cached"], self.cached_tokens)
        tokens.add_metric(["output"], self._output_tokens)
        yield tokens
        for spread in (self._batch, self._tokens, self._seconds):
            yield spread.family()
        if self.last is not None:
            yield from _now(self.last)


def _now(report: StepReport) -> Iterator[GaugeMetricFamily]:
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
