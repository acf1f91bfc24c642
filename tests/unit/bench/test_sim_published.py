"""Worked examples of published policies: formulas by hand, with the numbers of their sources."""

from __future__ import annotations

import pytest

from bench.sim.published.aibrix import PrefixCache
from bench.sim.published.dynamo import DynamoLinear, DynamoLMetric
from bench.sim.published.llmd import Blend, Sticky
from bench.sim.published.lmetric import LMetric
from bench.sim.published.sglang import CacheAware
from bench.sim.published.simple import PowerOfTwo, RoundRobin
from bench.sim.published.smg import LeastLoad
from bench.sim.published.view import Ask, Polled, Pool

BLOCK = 64


def test_dynamo_chooses_the_second_of_the_three_workers_in_its_routing_concepts() -> None:
    """A request of 10 blocks; cached 2, 5, 8; prefill 8, 5, 2 and decode 10, 5, 9: costs 18, 10, 11."""
    pool = Pool.idle(3)
    pool.active_tokens = [0, -5 * BLOCK, -1 * BLOCK]  # the page's decode blocks include the request's ten
    ask = Ask(10 * BLOCK, [2 * BLOCK, 5 * BLOCK, 8 * BLOCK])
    linear = DynamoLinear()
    assert [linear.cost(ask, pool, place) for place in range(3)] == [18.0, 10.0, 11.0]
    assert linear.choose(ask, pool) == 1


def test_dynamo_lmetric_multiplies_prefill_by_decode_plus_one() -> None:
    """(8) * (10 + 1) = 88, (5) * (5 + 1) = 30, (2) * (9 + 1) = 20: the warmest worker wins."""
    pool = Pool.idle(3)
    pool.active_tokens = [10 * BLOCK, 5 * BLOCK, 9 * BLOCK]
    ask = Ask(10 * BLOCK, [2 * BLOCK, 5 * BLOCK, 8 * BLOCK])
    product = DynamoLMetric()
    assert [product.cost(ask, pool, place) for place in range(3)] == [88.0, 30.0, 20.0]
    assert product.choose(ask, pool) == 2


def test_lmetric_multiplies_new_prefill_tokens_by_batch_size() -> None:
    """1,000 tokens: (500 + 200) * (9 + 1) = 7,000 on the warm worker, (0 + 1,000) * (3 + 1) = 4,000 cold."""
    pool = Pool.idle(2)
    pool.prefill_tokens, pool.in_flight = [500, 0], [9, 3]
    ask = Ask(1000, [800, 0])
    assert [LMetric().score(ask, pool, place) for place in range(2)] == [7000.0, 4000.0]
    assert LMetric().choose(ask, pool) == 1


@pytest.mark.parametrize(
    ("in_flight", "cached", "chosen"),
    [
        ([100, 30], [1000, 0], 1),  # 70 > 64 and 100 > 45: uneven, fewest requests, affinity dropped
        ([90, 30], [1000, 0], 0),  # 60 <= 64: even, and all is matched
        ([200, 140], [1000, 0], 0),  # 60 <= 64
        ([300, 220], [1000, 0], 0),  # 80 > 64, but 300 <= 330: even
        ([90, 30], [301, 0], 0),  # 0.301 > 0.3
        ([30, 90], [300, 0], 1),  # 0.3 is not above the threshold: the smallest tree
    ],
)
def test_sglang_drops_affinity_for_all_while_load_is_uneven(
    in_flight: list[int], cached: list[int], chosen: int
) -> None:
    pool = Pool.idle(2)
    pool.in_flight, pool.cache_tokens = in_flight, [5000, 4000]
    assert CacheAware().choose(Ask(1000, cached), pool) == chosen


def test_llmd_blend_weighs_prefix_queue_and_kv_three_two_two() -> None:
    """Queues 4, 2, 0: 3 * 0.9 + 0 + 2 * 0.2 = 3.1; 3 * 0.5 + 1 + 2 * 0.5 = 3.5; 0 + 2 + 2 * 0.9 = 3.8."""
    pool = Pool.idle(3)
    pool.polled = [
        Polled(waiting=4, kv_used=0.8),
        Polled(waiting=2, kv_used=0.5),
        Polled(waiting=0, kv_used=0.1),
    ]
    ask = Ask(1000, [900, 500, 0])
    assert [Blend().score(ask, pool, place) for place in range(3)] == pytest.approx([3.1, 3.5, 3.8])
    assert Blend().choose(ask, pool) == 2


def test_llmd_blend_without_a_difference_of_queues_gives_all_the_full_score() -> None:
    pool = Pool.idle(2)
    pool.polled = [Polled(waiting=3), Polled(waiting=3)]
    assert Blend().score(Ask(100, [0, 0]), pool, 0) == 4.0


@pytest.mark.parametrize(
    ("warm_tokens", "candidates"),
    [
        (286_704, [0]),  # 15,928 tokens a second * 18 s, exactly: not more than the penalty
        (286_720, [0, 1, 2]),  # a little more: saturated
        (0, [0]),
    ],
)
def test_llmd_sticks_to_the_warm_worker_until_it_is_eighteen_seconds_behind(
    warm_tokens: int, candidates: list[int]
) -> None:
    pool = Pool.idle(3, peak_rate=15_928.0)
    pool.prefill_tokens = [warm_tokens, 0, 5000]
    assert Sticky().candidates(Ask(1000, [800, 799, 0]), pool) == candidates


def test_llmd_sticky_then_takes_the_least_uncached_tokens_in_flight() -> None:
    """Both are warm: 900 + 100 = 1,000 against 500 + 200 = 700."""
    pool = Pool.idle(3)
    pool.prefill_tokens = [900, 500, 0]
    assert Sticky().choose(Ask(1000, [900, 800, 0]), pool) == 1


@pytest.mark.parametrize(
    ("running", "chosen"),
    [
        ([17, 0, 0, 0], 1),  # 17 - 0 > 16: imbalance, fewest running; the first of several may be any
        ([9, 1, 1, 1], 0),  # mean 3, sigma 3.46: 9 <= 9.93
        ([16, 1, 1, 1, 1, 1, 1, 1], 1),  # mean 2.875, sigma 4.96: 16 > 12.8, the next best match
    ],
)
def test_aibrix_takes_the_best_match_within_mean_plus_two_sigma(running: list[int], chosen: int) -> None:
    pool = Pool.idle(len(running))
    pool.in_flight = running
    cached = [1000, 500, *[0] * (len(running) - 2)]
    picked = PrefixCache().choose(Ask(1000, cached), pool)
    assert picked == chosen if max(running) - min(running) <= 16 else running[picked] == 0


def test_smg_least_load_adds_seconds_of_tokens_and_the_price_of_kv() -> None:
    """(3,000 + 1,000) / 2,000 + 0.15 * 0.5 / 0.5 = 2.15 s; 0 + 0.15 * 0.9 / 0.1 = 1.35 s."""
    pool = Pool.idle(2)
    pool.polled = [Polled(waiting_tokens=3000, kv_used=0.5), Polled(kv_used=0.9)]
    pool.since_poll_tokens = [1000, 0]
    policy = LeastLoad()
    assert [policy.load_s(pool, place) for place in range(2)] == pytest.approx([2.15, 1.35])
    assert policy.choose(Ask(100, [0, 0]), pool) == 1


def test_round_robin_goes_around() -> None:
    policy, pool = RoundRobin(), Pool.idle(3)
    assert [policy.choose(Ask(1, [0, 0, 0]), pool) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_power_of_two_never_takes_the_busiest_of_three() -> None:
    policy, pool = PowerOfTwo(), Pool.idle(3)
    pool.in_flight = [5, 1, 9]
    chosen = [policy.choose(Ask(1, [0, 0, 0]), pool) for _ in range(200)]
    assert 2 not in chosen
    assert chosen.count(1) > chosen.count(0) > 0
