"""How much output a request will probably have: for admission only, never for correctness."""

from __future__ import annotations

from services.worker.scheduler.request import LatencyClass
from services.worker.scheduler.sequence import Sequence

_QUANTILE = 0.9
_START_TOKENS = 256.0


class OutputForecast:
    """A running 90th percentile of output lengths per class, by stochastic steps of 5 %."""

    def __init__(self) -> None:
        self._quantiles = dict.fromkeys(LatencyClass, _START_TOKENS)

    def observe(self, sequence: Sequence) -> None:
        """Learn from a sequence that ended by itself."""
        latency_class = sequence.request.latency_class
        quantile = self._quantiles[latency_class]
        direction = _QUANTILE if sequence.outputs > quantile else _QUANTILE - 1.0
        self._quantiles[latency_class] = max(1.0, quantile + direction * (1.0 + 0.05 * quantile))

    def remaining(self, sequence: Sequence) -> int:
        """Output tokens still to come: at least one, at most what it may have."""
        request = sequence.request
        expected = request.expected_output_tokens or int(self._quantiles[request.latency_class])
        return max(1, min(expected, sequence.max_outputs) - sequence.outputs)
