"""The bench of moving streams computes what it says: every token once, the same requests in both runs."""

from __future__ import annotations

from bench.moving import CPU, Play, Scene
from services.router.policy.moving import MovingSettings

JOINING = Scene("a second joins", (CPU, CPU), 0.15, 150.0, joins_s=(0.0, 100.0))


def test_every_stream_ends_complete_and_moves_only_where_it_may() -> None:
    moving, staying = (Play(JOINING, 1, each).run() for each in (MovingSettings(), None))
    assert sum(each.moved for each in moving) > 0
    assert not any(each.moved for each in staying)
    lengths = [{each.ticket.number: each.made for each in run} for run in (moving, staying)]
    assert lengths[0] == lengths[1]
    assert all(each.made == each.output and not each.to_compute for each in (*moving, *staying))
    assert all(each.end_s > each.ticket.arrival_s for each in (*moving, *staying))
