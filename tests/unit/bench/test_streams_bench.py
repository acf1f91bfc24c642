"""The parts of the streams benches that judge."""

from __future__ import annotations

import subprocess
import sys

import pytest
from headrace.v1 import router_pb2

from bench.streams.asked import Asked, Mix
from bench.streams.growth import Growth, Look
from bench.streams.stock import Stock
from bench.streams.stream import Gaps, Stream, Tally
from bench.streams.strikes import Strike, around

IDS = [11, 12, 13, 14, 15, 16]
ASKED = Asked(router_pb2.GenerateRequest(), IDS, "abcdef")


def told(*deltas: tuple[int, list[int]], attempts: int = 1) -> Tally:
    tally = Tally(begun=1)
    stream = Stream(ASKED, tally)
    for now_s, (index, ids) in enumerate(deltas):
        text = "abcdef"[index : index + len(ids)]
        stream.take(router_pb2.Delta(index=index, token_ids=ids, text=text), float(now_s))
    stream.finish(router_pb2.Finished(attempts=attempts, worker_id="w"))
    return tally


def test_an_undisturbed_answer_has_no_faults() -> None:
    tally = told((0, IDS[:1]), (1, IDS[1:4]), (4, IDS[4:]), attempts=3)
    assert (tally.whole, tally.tokens, tally.messages, tally.moves, tally.faults) == (1, 6, 3, 2, 0)
    assert tally.gaps.between(0.0, 9.0) == [1.0, 1.0]


def test_tokens_that_come_twice_are_doubled() -> None:
    tally = told((0, IDS[:3]), (2, IDS[2:]))
    assert (tally.doubled, tally.missing, tally.wrong) == (1, 0, 0)


def test_tokens_that_are_skipped_and_a_cut_end_are_missing() -> None:
    assert told((0, IDS[:2]), (3, IDS[3:])).missing == 1
    assert told((0, IDS[:4])).missing == 2


def test_other_tokens_and_tokens_beyond_the_end_are_wrong() -> None:
    assert told((0, [11, 99, 13, 14, 15, 16])).wrong == 1
    assert told((0, [*IDS, 17])).wrong == 1


def test_a_stream_without_an_end_is_lost() -> None:
    tally = Tally(begun=3, whole=1, left=1)
    assert (tally.lost, tally.faults) == (1, 1)


def test_gaps_around_a_strike_are_the_longest_of_as_many_streams_as_were_hit() -> None:
    gaps = Gaps()
    for begun_s, ended_s in (
        (9.9, 10.05),
        (9.95, 10.4),
        (9.8, 10.6),
        (10.02, 10.12),
        (2.0, 9.0),
        (11.0, 15.0),
    ):
        gaps.add(begun_s, ended_s)
    found = list(around([Strike(10.0, held=2), Strike(40.0, held=0)], gaps))
    assert found == pytest.approx([0.45, 0.8])


def test_tasks_are_a_surplus_beyond_those_that_ran_the_same_before() -> None:
    before = Stock({"flights": 0.0}, {"router-0 call": 10.0, "worker-0 link": 7.0})
    after = Stock({"flights": 0.0}, {"router-0 call": 12.0, "worker-0 link": 5.0, "router-0 other": 1.0})
    assert after.surplus(before) == {"router-0 call": 2, "router-0 other": 1}
    assert not after.clear(before)
    assert Stock({"flights": 0.0}, {"router-0 call": 9.0}).clear(before)
    assert not Stock({"flights": 1.0}, {}).clear(before)


def test_growth_is_of_the_last_four_fifths() -> None:
    growth = Growth({"router": 1})
    for minute in range(11):
        memory = 500.0 if minute < 2 else 100.0 + 0.5 * minute
        growth.looks["router"].append(Look(60.0 * minute, memory, 30.0 * minute))
    assert growth.slope_mb("router") == pytest.approx(0.5)
    assert growth.cores("router") == pytest.approx(0.5)


def test_a_mix_is_the_same_at_every_draw() -> None:
    mix = Mix(requests=9, prompt_tokens=(3, 9), tokens=(5, 7), tokens_a_message=4)
    requests = mix.draw([7, 8, 9])
    assert requests == mix.draw([7, 8, 9])
    assert {each.flush.max_tokens for each in requests} == {4}
    assert all(3 <= len(each.token_ids.ids) <= 9 and 5 <= each.max_tokens <= 7 for each in requests)
    assert {each.sampling.temperature > 0 for each in requests} == {True, False}


def test_a_plan_takes_only_what_it_has() -> None:
    command = [sys.executable, "-m", "bench.streams", "vanish", "--seconds", "3"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, "vanish has no seconds" in found.stderr) == (2, True)
