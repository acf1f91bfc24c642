"""The generator's arithmetic: exact quantiles, schedules, shares, and what counts as good."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice, pairwise, takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.bench.arrivals import constant, poisson
from services.cli.bench.command import parse_duration
from services.cli.bench.mix import INFERRED, TARGETS, Mix, Target, parse_mix, parse_targets
from services.cli.bench.prompts import FromFile, Lengths, Synthetic, parse_lengths
from services.cli.bench.record import Record
from services.cli.bench.report import ALL, build, is_good
from services.cli.bench.stats import quantile, summarize

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(samples, st.integers(1, 100))
def test_a_quantile_is_the_least_sample_that_covers_its_fraction(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    found = quantile(ordered, percent / 100)
    needed = -(-percent * len(ordered) // 100)  # exact, in integers
    assert sum(each <= found for each in ordered) >= needed
    assert sum(each < found for each in ordered) < needed


@given(samples)
def test_a_summary_orders_its_quantiles_between_samples(values: list[float]) -> None:
    found = summarize(values)
    assert found is not None
    assert min(values) <= found.p50 <= found.p90 <= found.p99 <= found.max == max(values)
    assert {found.p50, found.p90, found.p99} <= set(values)
    assert math.isclose(found.mean, math.fsum(values) / len(values), rel_tol=1e-9, abs_tol=1e-9)


def test_no_samples_have_no_summary() -> None:
    assert summarize([]) is None


@given(st.floats(0.1, 1000))
def test_constant_arrivals_do_not_drift(rate: float) -> None:
    times = list(islice(constant(rate), 1000))
    assert times[0] == 0
    assert math.isclose(times[-1], 999 / rate)


def test_poisson_arrivals_have_the_rate_and_spread_of_their_name() -> None:
    times = list(takewhile(lambda at_s: at_s < 1000, poisson(20, seed=3)))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == pytest.approx(20_000, rel=0.03)
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.05)
    assert times == list(takewhile(lambda at_s: at_s < 1000, poisson(20, seed=3)))


def test_a_mix_draws_its_shares() -> None:
    mix = Mix(parse_mix("interactive=0.7,batch=0.3"), seed=1)
    drawn = [mix.draw() for _ in range(10_000)]
    assert drawn.count("interactive") == pytest.approx(7000, rel=0.03)
    assert set(drawn) == {"interactive", "batch"}
    assert Mix(parse_mix(None), seed=1).draw() == INFERRED


@pytest.mark.parametrize("text", ["urgent=1", "batch", "batch=-1", "batch=nan", "batch=0", "batch=inf"])
def test_a_wrong_mix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"class|share"):
        parse_mix(text)


def test_targets_are_overridden_a_class_at_a_time() -> None:
    found = parse_targets(["interactive=1.5/-"])
    assert found == {**TARGETS, "interactive": Target(1.5, None)}
    with pytest.raises(ValueError, match="CLASS=TTFT/TPOT"):
        parse_targets(["batch=3"])


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("2m", 120), ("0.5h", 1800), ("7", 7)])
def test_durations_read_as_ghz_writes_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("parse", [parse_duration, parse_lengths])
@pytest.mark.parametrize("text", ["", "0", "-3", "x", "5:2s"])
def test_wrong_durations_and_lengths_are_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse(text)


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0, 1), st.integers(0, 5))
def test_synthetic_prompts_have_their_length_and_share_their_prefix(
    least: int, more: int, share: float, seed: int
) -> None:
    lengths = Lengths(least, least + more)
    source = Synthetic(lengths, Lengths(3, 5), vocab_size=10**9, seed=seed, prefix_share=share)
    requests = list(islice(source, 5))
    for request in requests:
        assert least <= len(request.token_ids.ids) <= least + more
        assert 3 <= request.max_tokens <= 5
        assert request.sampling.ignore_eos
    first, second = (list(request.token_ids.ids) for request in requests[:2])
    common = min(int(share * len(first)), int(share * len(second)))
    assert first[:common] == second[:common]
    own = first[int(share * len(first)) :]
    assert not set(own) & set(second)


def test_equal_seeds_ask_equal_prompts_and_other_seeds_others() -> None:
    def asked(seed: int) -> list[bytes]:
        source = Synthetic(Lengths(5, 9), Lengths(1, 1), 1000, seed)
        return [request.SerializeToString() for request in islice(source, 20)]

    assert asked(1) == asked(1) != asked(2)


def test_prompts_of_a_file_go_round(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "a"},
        {"turns": ["b", "c"], "max_tokens": 2},
        {"messages": [{"role": "user", "content": "d"}]},
    ]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    asked = list(islice(FromFile(file, max_tokens=9), 4))
    assert [each.text for each in asked] == ["a", "", "", "a"]
    assert [each.max_tokens for each in asked] == [9, 2, 9, 9]
    assert asked[1].chat.messages[0].content == "b"
    assert asked[0] is not asked[3]


@pytest.mark.parametrize(
    "line", ["{", '{"turns": []}', "[1]", '{"prompt": 3}', '{"prompt": "a", "max_tokens": -1}']
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(ValueError, match=r"p\.jsonl:2: "):
        FromFile(file, max_tokens=9)


def record(
    latency_class: str = "interactive", status: str = "OK", *moments: float, intended: float = 0.0
) -> Record:
    found = Record(0, latency_class, intended, sent_s=intended, status=status)
    for moment in moments:
        found.arrived(moment, 1)
    found.end_s = moments[-1] if moments else intended
    return found


@given(st.lists(st.tuples(st.floats(0.001, 10), st.integers(1, 9)), min_size=1, max_size=50))
def test_times_of_a_request_add_up(messages: list[tuple[float, int]]) -> None:
    found, now_s = Record(0, "", intended_s=5.0, sent_s=7.0), 7.0
    for gap_s, tokens in messages:
        now_s += gap_s
        found.arrived(now_s, tokens)
    found.end_s = now_s
    assert found.output_tokens == sum(tokens for _, tokens in messages)
    assert found.send_lag_s == 2.0
    assert found.ttft_s is not None
    assert math.isclose(found.ttft_s + sum(found.gaps_s), found.e2e_s)
    rest = found.output_tokens - messages[0][1]
    assert (found.tpot_s is None) == (rest == 0)
    if found.tpot_s is not None:
        assert math.isclose(found.tpot_s * rest, sum(found.gaps_s))


def test_good_means_answered_and_within_both_targets() -> None:
    target = Target(ttft_s=0.5, tpot_s=0.1)
    assert is_good(record("x", "OK", 0.5, 0.6), target)
    assert not is_good(record("x", "OK", 0.51, 0.6), target)
    assert not is_good(record("x", "OK", 0.5, 0.7), target)
    assert not is_good(record("x", "UNAVAILABLE", 0.1, 0.2), target)
    assert is_good(record("x", "OK", 100.0, 200.0), Target(None, None))
    assert is_good(record("x", "OK", 0.2), target)


@given(st.lists(st.tuples(st.sampled_from(["interactive", "batch"]), st.booleans()), min_size=1, max_size=60))
def test_a_report_loses_no_request(requests: list[tuple[str, bool]]) -> None:
    records = [record(name, "OK" if ok else "UNAVAILABLE", 0.1, 0.2) for name, ok in requests]
    by_class = dict(build(records, TARGETS).by_class)
    total = by_class.pop(ALL)
    assert total.requests == len(records) == total.ok + sum(each.requests for each in total.errors.values())
    assert total.ok == sum(ok for _, ok in requests)
    assert (total.e2e.samples if total.e2e else 0) == total.ok
    if by_class:
        assert total.requests == sum(figures.requests for figures in by_class.values())
        assert total.good == sum(figures.good for figures in by_class.values())


def test_errors_are_counted_by_status_and_reason_with_what_the_first_of_them_said() -> None:
    ended = [
        ("INVALID_ARGUMENT", "INVALID_ARGUMENT", "too long"),
        ("UNAVAILABLE", "", "connection refused"),
        ("UNAVAILABLE", "", "connection reset"),
        ("RESOURCE_EXHAUSTED", "OVERLOADED", "full"),
    ]
    records = [record("batch", status) for status, _, _ in ended]
    for each, (_, reason, why) in zip(records, ended, strict=True):
        each.reason, each.why = reason, why
    assert build(records, TARGETS).by_class[ALL].errors == {
        "UNAVAILABLE": (2, "connection refused"),
        "INVALID_ARGUMENT": (1, "too long"),
        "RESOURCE_EXHAUSTED OVERLOADED": (1, "full"),
    }


def test_a_run_lasts_from_the_first_intended_sending_to_the_last_end() -> None:
    records = [record("batch", "OK", 4.0, intended=1.0), record("batch", "OK", 9.0, intended=3.0)]
    figures = build(records, TARGETS).by_class[ALL]
    assert (figures.seconds, figures.requests_per_s) == (8.0, 2 / 8.0)


def test_what_the_generator_costs_is_given_a_message() -> None:
    one = record("batch", "OK", 1.0)
    one.messages = 4
    assert build([one], TARGETS, cpu_s=0.002).generator_cpu_us_per_message == pytest.approx(500)
