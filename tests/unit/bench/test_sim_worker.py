"""The simulated worker: leaps change nothing, credit is never overdrawn, what it tells is true."""

from __future__ import annotations

import pytest

from bench.sim import loads
from bench.sim.contenders import Contender, published
from bench.sim.fleet import Fleet, Loss, Run
from bench.sim.loads import Load
from bench.sim.outcome import Targets, outcome
from services.worker.scheduler.policy import SchedulerSettings

OURS = Contender("ours")
BY_NAME = {each.name: each for each in published()}


def shared(rate: float = 4.0, count: int = 60, seed: int = 1) -> Load:
    return loads.shared_prefix(rate=rate, count=count, seed=seed, groups=6, users=2, system=1536, own=512)


def fleet(workers: int = 2, **more: object) -> Fleet:
    return Fleet(devices=("h100-8b",) * workers, **more)  # type: ignore[arg-type]


def check(run: Run) -> None:
    for worker in run.workers:
        if not worker.dead:
            worker.scheduler.check()
            assert not worker.scheduler.has_work


@pytest.mark.parametrize(("contender", "workers"), [(OURS, 1), (BY_NAME["round robin"], 2)])
def test_leaping_over_equal_steps_changes_nothing(contender: Contender, workers: int) -> None:
    load = shared(count=40)
    leaping = contender.play(fleet(workers), load, 0)
    stepping = contender.play(fleet(workers, leaps=False), load, 0)
    for fast, slow in zip(leaping.stories, stepping.stories, strict=True):
        assert fast.worker == slow.worker
        assert fast.output_tokens == slow.output_tokens == fast.request.output_tokens
        assert fast.cached_tokens == pytest.approx(slow.cached_tokens, abs=256)  # chunks may end elsewhere
        assert fast.ttft_s == pytest.approx(slow.ttft_s, abs=0.03)
        assert fast.e2e_s == pytest.approx(slow.e2e_s, rel=0.01)
    steps = [sum(worker.steps for worker in run.workers) for run in (leaping, stepping)]
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    check(leaping)


def test_leaps_stop_where_blocks_run_out() -> None:
    tight = Fleet(devices=("l4-8b",), max_seqs=32)
    run = BY_NAME["round robin"].play(tight, shared(rate=5.0, count=24), 0)
    assert [story.output_tokens for story in run.stories] == [each.output_tokens for each in shared(5.0, 24)]
    assert sum(story.preemptions for story in run.stories) > 0
    check(run)


@pytest.mark.parametrize("routers", [1, 4])
def test_every_request_ends_once_and_no_router_overdraws(routers: int) -> None:
    run = OURS.play(fleet(routers=routers), shared(rate=20.0, count=120), 0)
    assert all(story.end_s is not None for story in run.stories)
    assert [story.output_tokens for story in run.stories] == [
        story.request.output_tokens for story in run.stories
    ]
    check(run)


def test_the_routers_index_ends_with_what_workers_keep() -> None:
    run = OURS.play(fleet(), shared(), 0)
    router = run.routers[0]
    index = router.scheduler.fleet("model").index  # type: ignore[attr-defined]
    index.expire(1e9)
    for worker in run.workers:
        assert index.kept(worker.key) == len(worker.cached)
        assert len(worker.cached) == len(worker.scheduler.kv_snapshot().digests)


def test_a_lost_workers_requests_go_on_elsewhere() -> None:
    load = loads.azure(loads.AZURE_EXCERPT, speed=6, count=300, seed=0)
    run = OURS.play(fleet(3, loss=Loss(0, 3.0)), load, 0)
    moved = [story for story in run.stories if story.moves]
    assert moved
    assert all(story.end_s is not None and story.worker != 0 for story in moved)
    assert all(story.output_tokens == story.request.output_tokens for story in run.stories)


def test_early_binding_leaves_requests_on_a_lost_worker() -> None:
    load = loads.azure(loads.AZURE_EXCERPT, speed=6, count=300, seed=0)
    run = BY_NAME["LMetric"].play(fleet(3, loss=Loss(0, 3.0)), load, 0)
    assert any(story.end_s is None for story in run.stories)


def test_shared_prefixes_are_found_again() -> None:
    run = OURS.play(fleet(), shared(count=100), 0)
    ideal = 1 - (6 * 1536 + 12 * 512) / (100 * 2048)
    assert outcome(run.stories, Targets()).hit / 100 > 0.8 * ideal


def test_a_run_repeats_exactly() -> None:
    load = shared(rate=12.0)
    first, second = (OURS.play(fleet(routers=2), load, 0) for _ in range(2))
    assert [story.end_s for story in first.stories] == [story.end_s for story in second.stories]


def test_the_engines_settings_reach_the_scheduler() -> None:
    slow = OURS.play(fleet(1, scheduler=SchedulerSettings(max_chunk=64)), shared(count=10), 0)
    fast = OURS.play(fleet(1), shared(count=10), 0)
    assert outcome(slow.stories, Targets()).ttft_mean > 2 * outcome(fast.stories, Targets()).ttft_mean
