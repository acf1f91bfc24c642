"""Small runs of `bench.streams`: nothing lost, nothing doubled, nothing left; never how fast."""

from __future__ import annotations

from bench.relay.mesh import Site
from bench.streams import kills, routers, scale, slow, vanish
from bench.streams.asked import Mix
from bench.streams.stream import Tally

MIX = Mix(requests=8, tokens=(40, 80))


def assert_faultless(tally: Tally) -> None:
    assert (tally.lost, tally.failed) == (0, {})
    assert (tally.doubled, tally.missing, tally.wrong, tally.wrong_texts) == (0, 0, 0, 0)


async def test_streams_outlive_workers_that_are_killed_and_frozen(site: Site) -> None:
    plan = kills.Kills(streams=24, workers=3, seconds=4.0, every_s=2.0, step_s=0.05, mix=MIX)
    for struck in (await kills.run(site, plan)).values():
        assert struck.strikes
        assert struck.tally.moves > 0
        assert_faultless(struck.tally)
        assert struck.after.clear(struck.before), (struck.before, struck.after)


async def test_streams_outlive_a_router_that_is_killed(site: Site) -> None:
    plan = routers.Routers(streams=24, seconds=3.0, every_s=2.0, step_s=0.05, mix=MIX)
    found = await routers.run(site, plan)
    assert sum(each.held for each in found.strikes) > 0
    assert found.resumes > 0
    assert_faultless(found.tally)
    assert found.stock is not None
    before, after = found.stock
    assert after.clear(before), (before, after)


async def test_workers_come_and_go_and_no_stream_notices(site: Site) -> None:
    found = await scale.run(site, scale.Scale(streams=24, workers=3, seconds=6.0, step_s=0.05, mix=MIX))
    assert sum(found.held) > 0
    assert found.exits == [0, 0]
    assert_faultless(found.tally)
    assert found.left is not None
    before, after = found.left
    assert after.clear(before), (before, after)


async def test_nothing_is_held_for_clients_that_vanish(site: Site) -> None:
    plan = vanish.Vanish(clients=40, others=8, repeats=1, step_s=0.05, mix=MIX)
    found = await vanish.run(site, plan)
    (crowd,) = found.crowds
    assert crowd.held.held["flights in routers"] == plan.clients
    assert crowd.held.held["KV blocks"] > 0
    assert crowd.left.clear(found.before), (found.before, crowd.left)
    assert_faultless(found.others)
    assert found.after.clear(found.before), (found.before, found.after)


async def test_clients_that_hardly_read_are_ended_and_the_others_read_on(site: Site) -> None:
    endless = Mix(requests=2, tokens=(1500, 1500))
    plan = slow.Slow(
        clients=8, others=8, pairs=1, stall_s=1.0, settle_s=0.5, step_s=0.05, mix=MIX, endless=endless
    )
    found = await slow.run(site, plan)
    (turned_down,) = found.turned_down
    assert turned_down.clients.failed == {slow.SLOW_CONSUMER: plan.clients}
    assert (turned_down.clients.doubled, turned_down.clients.wrong) == (0, 0)
    assert_faultless(found.others)
    assert found.after.clear(found.before), (found.before, found.after)
