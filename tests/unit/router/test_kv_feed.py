"""KV events put in order: gaps, duplicates, snapshots in pieces, nonsense."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.policy.kv_feed import ASK_AGAIN_S, MOST_FAILURES, KvFeed
from services.router.policy.prefix_index import PrefixIndex

BLOCKS = 60
NAMES = [random.Random(number).randbytes(16) for number in range(3 * BLOCKS)]


class Worker:
    """A cache that tells of itself as workers do."""

    def __init__(self) -> None:
        self.kept: set[bytes] = set()
        self.next_event = 1

    def change(self, draw: random.Random, count: int) -> tuple[int, list[int], list[bytes]]:
        first, changes, names = self.next_event, [], []
        for _ in range(count):
            name = draw.choice(NAMES)
            kind = 2 if draw.random() < 0.03 else int(name not in self.kept and len(self.kept) < BLOCKS)
            if kind == 2:
                self.kept.clear()
                name = b""
            elif kind:
                self.kept.add(name)
            else:
                self.kept.discard(name)
            changes.append(kind)
            names.append(name)
        self.next_event += count
        return first, changes, names

    def snapshot(self, pieces: int) -> list[tuple[int, bytes, bool]]:
        names = sorted(self.kept)
        size = max(1, -(-len(names) // pieces))
        parts = [b"".join(names[start : start + size]) for start in range(0, len(names), size)] or [b""]
        return [(self.next_event, part, part is parts[-1]) for part in parts]


def started() -> tuple[PrefixIndex, KvFeed]:
    index = PrefixIndex()
    index.join("other", BLOCKS)
    index.join("w", BLOCKS)
    return index, KvFeed("w", BLOCKS, index)


def in_step() -> tuple[PrefixIndex, KvFeed]:
    index, feed = started()
    feed.snapshot(1, b"", last=True, now=0.0)
    return index, feed


def kept(index: PrefixIndex, key: str = "w") -> set[bytes]:
    position = index.positions[key]
    return {name for name in NAMES if index.match(np.frombuffer(name, "<u8").reshape(1, 2))[position]}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(["event", "lost", "twice"]), max_size=30))
def test_index_is_the_workers_truth_after_loss_and_resync(seed: int, fates: list[str]) -> None:
    draw, worker = random.Random(seed), Worker()
    index, feed = started()
    snapshot: list[tuple[int, bytes, bool]] = []
    for now, fate in enumerate([*fates, "event", "event", "event"], start=1):
        events = worker.change(draw, draw.randrange(1, 20))
        if fate != "lost":
            feed.events(*events)
        if fate == "twice":
            feed.events(*events)
        if feed.snapshot_wanted(float(now * 10)):
            snapshot = worker.snapshot(draw.randrange(1, 4))
        if snapshot and draw.random() < 0.7:
            number, names, last = snapshot.pop(0)
            feed.snapshot(number, names, last=last, now=float(now * 10))
    feed.events(*worker.change(draw, 1))
    for now in range(1000, 1003):
        if feed.snapshot_wanted(float(now * 10)):
            snapshot = worker.snapshot(2)
        for number, names, last in snapshot:
            feed.snapshot(number, names, last=last, now=float(now * 10))
        snapshot = []
    assert feed.in_step
    assert not feed.faults.keys() - {"gap", "duplicate"}
    assert kept(index) == worker.kept
    assert index.kept("w") == len(worker.kept)


def test_a_new_session_asks_for_everything_once_and_again_without_answer() -> None:
    _, feed = started()
    assert feed.snapshot_wanted(10.0)
    assert not feed.snapshot_wanted(10.1)
    assert feed.snapshot_wanted(10.0 + ASK_AGAIN_S)
    feed.snapshot(1, b"", last=True, now=16.0)
    assert not feed.snapshot_wanted(100.0)


def test_a_new_session_forgets_what_an_earlier_one_kept() -> None:
    index, feed = in_step()
    feed.events(1, [1, 1], NAMES[:2])
    KvFeed("w", BLOCKS, index)
    assert kept(index) == set()


def test_a_gap_is_counted_and_asks_for_a_snapshot() -> None:
    index, feed = in_step()
    feed.events(1, [1], NAMES[:1])
    feed.events(3, [1], NAMES[2:3])
    assert feed.faults == {"gap": 1}
    assert feed.snapshot_wanted(1.0)
    feed.snapshot(3, b"".join(NAMES[:2]), last=True, now=1.0)
    assert kept(index) == set(NAMES[:3])


def test_events_that_came_before_a_snapshot_are_not_taken_twice() -> None:
    index, feed = started()
    feed.events(1, [1, 0], [NAMES[0], NAMES[0]])
    feed.events(3, [1], NAMES[1:2])
    feed.snapshot(3, NAMES[5], last=True, now=0.0)
    assert kept(index) == {NAMES[5], NAMES[1]}


def test_a_frame_that_overlaps_is_taken_from_where_it_is_new() -> None:
    index, feed = in_step()
    feed.events(1, [1, 1], NAMES[:2])
    feed.events(2, [0, 1], [NAMES[0], NAMES[2]])
    assert kept(index) == {NAMES[0], NAMES[1], NAMES[2]}


def test_order_within_a_frame_is_kept() -> None:
    index, feed = in_step()
    feed.events(1, [1, 0, 1, 2, 1, 1, 0], [NAMES[0], NAMES[0], NAMES[1], b"", *NAMES[2:4], NAMES[2]])
    assert kept(index) == {NAMES[3]}


def test_nonsense_costs_only_its_sender() -> None:
    index, feed = in_step()
    index.stored("other", np.frombuffer(NAMES[0], "<u8").reshape(1, 2))
    for attempt in range(MOST_FAILURES):
        assert not feed.deaf
        if attempt % 2:
            feed.events(1, [1, 7, 1], [NAMES[0], b"short", NAMES[1]])
        else:
            feed.snapshot(1, b"x" * 17, last=True, now=float(attempt))
    assert feed.deaf
    assert feed.faults == {"malformed": MOST_FAILURES}
    assert kept(index) == set()
    assert kept(index, "other") == {NAMES[0]}
    assert not feed.snapshot_wanted(1e9)


def test_more_blocks_than_the_worker_has_are_not_believed() -> None:
    index, feed = started()
    feed.snapshot(1, b"".join(NAMES[: BLOCKS + 1]), last=True, now=0.0)
    assert feed.faults == {"more_than_its_blocks": 1}
    assert index.kept("w") == 0
    assert feed.snapshot_wanted(0.0)


def test_a_later_snapshot_takes_the_place_of_an_unfinished_one() -> None:
    index, feed = started()
    feed.snapshot(5, NAMES[0], last=False, now=0.0)
    feed.events(5, [1], NAMES[3:4])
    feed.snapshot(6, NAMES[1], last=False, now=6.0)
    feed.events(6, [1], NAMES[4:5])
    assert not feed.in_step
    feed.snapshot(6, NAMES[2], last=True, now=6.0)
    assert kept(index) == {NAMES[1], NAMES[2], NAMES[4]}
    assert not feed.faults.keys() - {"duplicate"}
