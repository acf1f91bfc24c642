"""Loads are the same for the same seed, within their bounds, and as dense as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workload import Job, Lengths, Work, offline, online, parse_mix
from services.worker.scheduler.request import LatencyClass

WORK = Work(Lengths(3, 9), Lengths(1, 4), vocab=100)
INTERACTIVE = {LatencyClass.INTERACTIVE: 1.0}


def _plain(jobs: list[Job]) -> list[tuple[object, ...]]:
    return [(job.at_s, job.prompt.tolist(), *job[2:]) for job in jobs]


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_offline_jobs_keep_their_bounds_and_their_seed(seed: int, count: int) -> None:
    jobs = offline(WORK, count, seed)
    assert len(jobs) == count
    for job in jobs:
        assert 3 <= len(job.prompt) <= 9
        assert 1 <= job.output_tokens <= 4
        assert 3 <= job.prompt.min() <= job.prompt.max() < 100
        assert job.sampling.ignore_eos
    assert _plain(jobs) == _plain(offline(WORK, count, seed))


@given(st.integers(0, 2**31))
def test_arrivals_are_in_order_and_within_the_time(seed: int) -> None:
    times = [job.at_s for job in online(WORK, 20.0, 5.0, seed, INTERACTIVE)]
    assert times == sorted(times)
    assert all(0.0 < at_s < 5.0 for at_s in times)


def test_arrivals_are_poisson_at_the_rate_asked() -> None:
    times = np.array([job.at_s for job in online(WORK, 50.0, 200.0, 7, INTERACTIVE)])
    gaps = np.diff(times)
    assert len(times) == pytest.approx(50.0 * 200.0, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential gaps deviate by their mean"


def test_classes_come_by_their_weights() -> None:
    mix = {LatencyClass.INTERACTIVE: 3.0, LatencyClass.BATCH: 1.0}
    classes = [job.latency_class for job in online(WORK, 100.0, 100.0, 7, mix)]
    part = classes.count(LatencyClass.BATCH) / len(classes)
    assert set(classes) == set(mix)
    assert part == pytest.approx(0.25, abs=0.02)


def test_a_request_is_its_job_at_the_time_of_submission() -> None:
    job = offline(WORK, 1, 0)[0]
    request = job.request(5, 12.5, kv_key=b"k")
    assert (request.handle, request.arrival_s, request.kv_key) == (5, 12.5, b"k")
    assert request.prompt is job.prompt
    assert request.max_tokens == job.output_tokens


@pytest.mark.parametrize(("text", "lengths"), [("128", Lengths(128, 128)), ("64-256", Lengths(64, 256))])
def test_lengths_are_one_number_or_two(text: str, lengths: Lengths) -> None:
    assert Lengths.parse(text) == lengths


@pytest.mark.parametrize("text", ["0", "9-3", "a", "3-", ""])
def test_lengths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"out of range|invalid literal"):
        Lengths.parse(text)


def test_mixes_are_classes_with_weights() -> None:
    assert parse_mix("interactive=3,batch") == {LatencyClass.INTERACTIVE: 3.0, LatencyClass.BATCH: 1.0}


@pytest.mark.parametrize("text", ["urgent=1", "batch=-1", "batch=0", "batch=x"])
def test_mixes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no class|out of range|could not convert"):
        parse_mix(text)
