"""What the replay of a trace prints."""

from __future__ import annotations

from bench.scheduler_trace import Outcome, told


def test_an_outcome_is_told_with_units_and_without_noise() -> None:
    outcome = Outcome(35.43955927603548, 700.1, 48.0, 99.123456, 12345.678, 0.0, 3.0)
    assert told(outcome) == (
        "ttft_p50_ms 35.4 ms, ttft_p99_ms 700.1 ms, tpot_p99_ms 48.0 ms, slo 99.1 %, "
        "batch_tokens 12,345.7 tok/s, batch_outputs 0.0 tok/s, model_error 3.0 %"
    )
