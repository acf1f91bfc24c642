"""Metrics for what is counted with every request, at a fraction of prometheus_client's cost.

Its own may be counted by several threads, so each count takes a lock and some calls. These belong to the one
thread that counts; others may read them at any time. Neither forgets a row: labels must have few values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally:
    """How often something was so; a row of `Tallies`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Once more, or by a positive amount."""
        self.value += amount


class Tallies(Collector):
    """A counter with labels."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._rows: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The row of these values."""
        row = self._rows.get(values)
        if row is None:
            row = self._rows[values] = Tally()
        return row

    def collect(self) -> Iterator[Metric]:
        """As Prometheus wants it."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, row in list(self._rows.items()):
            family.add_metric(values, row.value)
        yield family


class Level(Collector):
    """How many of something there are; a gauge without labels."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self.value = 0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As Prometheus wants it."""
        yield GaugeMetricFamily(self._name, self._text, value=self.value)


class Spread:
    """How values of something lie; a row of `Spreads`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.add(value, value)

    def add(self, value: float, total: float, count: int = 1) -> None:
        """So many more around a value, which come to a total."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += total

    def cumulative(self) -> list[tuple[str, float]]:
        """Counts up to each bound, as Prometheus names them."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Spreads(Collector):
    """A histogram with labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        *,
        buckets: Sequence[float],
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._buckets = tuple(buckets)
        self._rows: dict[tuple[str, ...], Spread] = {}
        registry.register(self)

    def labels(self, *values: str) -> Spread:
        """The row of these values."""
        row = self._rows.get(values)
        if row is None:
            row = self._rows[values] = Spread(self._buckets)
        return row

    def collect(self) -> Iterator[Metric]:
        """As Prometheus wants it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, row in list(self._rows.items()):
            family.add_metric(values, row.cumulative(), row.sum)
        yield family
