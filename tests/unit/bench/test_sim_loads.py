"""Loads: what a seed draws, what a trace says, and what prompts share."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bench.sim import loads
from bench.sim.outcome import jain
from services.common.kv_chain import BLOCK_TOKENS
from services.worker.scheduler.request import LatencyClass


def azure(seed: int = 0, count: int = 400) -> loads.Load:
    return loads.azure(loads.AZURE_EXCERPT, speed=2.0, count=count, seed=seed)


def test_a_trace_is_sped_up_and_goes_around() -> None:
    load = loads.azure(loads.AZURE_EXCERPT, speed=2.0, count=8000, seed=3)
    times = [each.arrival_s for each in load]
    assert times[0] == 0.0
    assert times == sorted(times)
    assert 2 * 4.0 < len(load) / times[-1] < 2 * 7.0
    assert [each.number for each in load] == list(range(8000))


def test_windows_of_all_seeds_have_the_first_ones_rate() -> None:
    lasts = [azure(seed)[-1].arrival_s for seed in range(4)]
    assert np.allclose(lasts, lasts[0])


def test_seeds_are_windows_of_a_trace() -> None:
    assert [each.parts for each in azure(0)] == [each.parts for each in azure(0)]
    assert [each.prompt_tokens for each in azure(1)] != [each.prompt_tokens for each in azure(2)]


def test_mooncake_hashes_become_eight_blocks_each() -> None:
    load = loads.mooncake(loads.MOONCAKE_EXCERPT, speed=1.0, count=200, seed=0)
    long = next(each for each in load if each.prompt_tokens > 4096)
    assert loads.MOONCAKE_BLOCK // BLOCK_TOKENS == 8
    assert len(long.digests) == long.prompt_tokens // BLOCK_TOKENS
    assert len(long.prompt()) == long.prompt_tokens


def test_equal_beginnings_have_equal_digests_and_nothing_else() -> None:
    load = loads.shared_prefix(rate=10, count=400, seed=0, groups=3, users=2, system=640, own=128)
    names: dict[tuple[int, ...], set[bytes]] = {}
    for each in load:
        contents = tuple(part.content for part in each.parts)
        names.setdefault(contents, set()).add(each.digests.tobytes())
    assert all(len(found) == 1 for found in names.values())
    groups = {
        contents[0]: {next(iter(names[key]))[:160] for key in names if key[0] == contents[0]}
        for contents in names
    }
    assert all(len(found) == 1 for found in groups.values())
    assert len(set.union(*groups.values())) == len(groups) == 3


def test_tenants_have_their_part() -> None:
    counts = Counter(each.tenant for each in loads.neighbours(azure(count=3000), 0.7, 5, 0))
    assert 0.66 < counts["heavy"] / 3000 < 0.74
    assert all(0.04 < counts[f"light{place}"] / 3000 < 0.08 for place in range(5))


def test_unlabelled_requests_say_nothing_but_how_they_are_asked() -> None:
    labelled = loads.mixed(azure(count=2000), 0)
    unlabelled = loads.mixed(azure(count=2000), 0, labelled=False)
    assert all(each.latency_class is None for each in unlabelled)
    for known, asked in zip(labelled, unlabelled, strict=True):
        assert asked.streaming == (known.latency_class is LatencyClass.INTERACTIVE)
        assert (asked.deadline_after_s is not None) == (known.latency_class is LatencyClass.BATCH)


def test_bursts_are_identical_and_at_once() -> None:
    load = loads.bursts(azure(count=800), 0)
    of_burst = [each for each in load if each.kv_key]
    times = Counter(each.arrival_s for each in of_burst)
    assert set(times.values()) == {24}
    assert [each.number for each in load] == list(range(len(load)))
    first = [each for each in of_burst if each.arrival_s == of_burst[0].arrival_s]
    assert all(np.array_equal(each.prompt(), first[0].prompt()) for each in first)


def test_jains_index() -> None:
    assert jain([1, 1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
