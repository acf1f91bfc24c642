"""What is counted cheaply reads as what prometheus_client counts itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.common.metrics import LATENCY_BUCKETS_S
from services.common.tallies import Level, Spreads, Tallies

LABELS = ["method", "code"]
ROWS = st.tuples(st.sampled_from(["Generate", "Encode"]), st.sampled_from(["OK", 'odd "name"\n']))
SECONDS = st.one_of(st.sampled_from(LATENCY_BUCKETS_S), st.floats(0, 1000, allow_nan=False))


def exposed(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


@given(st.lists(st.tuples(ROWS, st.integers(0, 1 << 40))))
def test_tallies_read_as_a_counter(counted: list[tuple[tuple[str, str], int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies("headrace_calls", "Calls", LABELS, ours)
    counter = Counter("headrace_calls", "Calls", LABELS, registry=theirs)
    for row, amount in counted:
        tallies.labels(*row).inc(amount)
        counter.labels(*row).inc(amount)
    assert exposed(ours) == exposed(theirs)


@given(st.integers(0, 1 << 20))
def test_a_level_reads_as_a_gauge(value: int) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Level("headrace_running", "Runs", ours).value += value
    Gauge("headrace_running", "Runs", registry=theirs).inc(value)
    assert exposed(ours) == exposed(theirs)


def test_a_counter_without_labels_is_there_before_anything_is_counted() -> None:
    registry = CollectorRegistry()
    row = Tallies("headrace_tokens", "Tokens", [], registry).labels()
    assert registry.get_sample_value("headrace_tokens_total") == 0
    row.inc(3)
    assert registry.get_sample_value("headrace_tokens_total") == 3


@given(st.lists(st.tuples(ROWS, SECONDS)))
def test_spreads_read_as_a_histogram(counted: list[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spreads = Spreads("headrace_seconds", "Time", LABELS, ours, buckets=LATENCY_BUCKETS_S)
    histogram = Histogram("headrace_seconds", "Time", LABELS, buckets=LATENCY_BUCKETS_S, registry=theirs)
    for row, seconds in counted:
        spreads.labels(*row).observe(seconds)
        histogram.labels(*row).observe(seconds)
    assert exposed(ours) == exposed(theirs)


def test_many_values_of_one_kind_are_counted_at_once() -> None:
    registry = CollectorRegistry()
    spreads = Spreads("headrace_gap_seconds", "Gaps", ["class"], registry, buckets=(0.1, 1.0))
    spreads.labels("batch").add(0.05, 0.3, 6)
    assert registry.get_sample_value("headrace_gap_seconds_bucket", {"class": "batch", "le": "0.1"}) == 6
    assert registry.get_sample_value("headrace_gap_seconds_sum", {"class": "batch"}) == 0.3
