"""The block pool: names, references, eviction, deferred release, events."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.kv_chain import chain_digests, chain_root, extend_chain
from services.worker.scheduler.blocks import BlockPool, Link

KEY = b"k" * 32
NUMERICS = b"n" * 32


def links(count: int, key: bytes = KEY, first: int = 0) -> list[Link]:
    """A chain of blocks with 4 ids each."""
    found = []
    parent = chain_root(key, NUMERICS, 4)
    for index in range(count):
        ids = np.arange(first + 4 * index, first + 4 * index + 4, dtype="<i4").tobytes()
        found.append(Link(extend_chain(key, parent, ids), parent, ids))
        parent = found[-1].digest
    return found


def sealed(pool: BlockPool, chain: list[Link]) -> list[int]:
    """Blocks that hold the chain, released."""
    blocks = pool.take(len(chain))
    assert blocks is not None
    for block, link in zip(blocks, chain, strict=True):
        pool.seal(block, link)
    pool.release(blocks, 0)
    return blocks


def test_sealed_blocks_are_found_by_their_chain() -> None:
    pool = BlockPool(8)
    blocks = sealed(pool, links(3))
    assert pool.find(links(5)) == blocks
    pool.hold(blocks)
    assert pool.statistics() == (5, 0, 3, 8)
    pool.check()


def test_a_chain_under_another_key_finds_nothing() -> None:
    pool = BlockPool(8)
    sealed(pool, links(3))
    assert pool.find(links(3, key=b"x" * 32)) == []


def test_a_digest_with_other_ids_is_a_miss() -> None:
    pool = BlockPool(8)
    sealed(pool, links(2))
    first, second = links(2)
    forged = replace_ids(second, b"\1" * 16)
    assert len(pool.find([first, forged])) == 1


def replace_ids(link: Link, ids: bytes) -> Link:
    return link._replace(ids=ids)


def test_the_end_of_a_chain_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(4)
    blocks = sealed(pool, links(4))
    taken = pool.take(2)
    assert taken is not None
    assert pool.find(links(4)) == blocks[:2]
    assert set(taken) == set(blocks[2:])


def test_the_least_recently_used_chain_is_evicted_first() -> None:
    pool = BlockPool(4)
    old, new = links(2), links(2, first=100)
    sealed(pool, old)
    sealed(pool, new)
    pool.hold(found := pool.find(old))
    pool.release(found, 0)
    assert pool.take(2) is not None
    assert len(pool.find(old)) == 2
    assert pool.find(new) == []


def test_blocks_of_a_launched_step_come_back_when_it_completes() -> None:
    pool = BlockPool(4)
    blocks = pool.take(3)
    assert blocks is not None
    pool.release(blocks, last_reader_step=7)
    assert pool.statistics() == (1, 0, 3, 4)
    assert pool.returning == 3
    pool.complete(6)
    assert pool.take(2) is None
    pool.complete(7)
    assert pool.statistics() == (4, 0, 0, 4)


def test_shared_blocks_stay_until_their_last_holder_leaves() -> None:
    pool = BlockPool(4)
    blocks = sealed(pool, links(2))
    pool.hold(blocks)
    pool.hold(blocks)
    pool.release(blocks, 0)
    assert pool.statistics().held == 2
    pool.release(blocks, 0)
    assert pool.statistics() == (2, 2, 0, 4)


def test_taking_more_than_there_is_takes_nothing() -> None:
    pool = BlockPool(4)
    assert pool.take(5) is None
    assert pool.statistics() == (4, 0, 0, 4)


def test_events_replay_to_the_snapshot() -> None:
    pool = BlockPool(4)
    sealed(pool, links(3))
    pool.take(2)
    events = pool.take_events()
    assert events.first_number == 1
    seen: set[bytes] = set()
    for stored, digest in zip(events.stored.tolist(), events.digests, strict=True):
        seen = seen | {digest} if stored else seen - {digest}
    assert pool.snapshot().number == len(events.digests) == 4
    assert set(pool.snapshot().digests) == seen
    assert len(pool.take_events().digests) == 0


def test_chain_digests_depend_on_every_part() -> None:
    ids = np.arange(130)
    root = chain_root(KEY, NUMERICS)
    digests = chain_digests(KEY, root, ids)
    assert len(digests) == 2
    assert {len(digest) for digest in digests} == {32}
    changed = ids.copy()
    changed[3] += 1
    others = [
        chain_digests(KEY, root, changed),
        chain_digests(b"x" * 32, root, ids),
        chain_digests(KEY, chain_root(KEY, b"m" * 32), ids),
        chain_digests(KEY, chain_root(KEY, NUMERICS, 32), ids),
    ]
    assert all(not set(digests) & set(other) for other in others)


class PoolMachine(RuleBasedStateMachine):
    """Any order of operations keeps the books balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(10)
        self.held: list[list[int]] = []
        self.step = 0

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        available = self.pool.available
        blocks = self.pool.take(count)
        assert (blocks is None) == (count > available)
        if blocks is not None:
            self.held.append(blocks)

    @rule(count=st.integers(1, 4), first=st.sampled_from([0, 100]))
    def match(self, count: int, first: int) -> None:
        found = self.pool.find(links(count, first=first))
        self.pool.hold(found)
        self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), first=st.sampled_from([0, 100]))
    def seal(self, data: st.DataObject, first: int) -> None:
        blocks = data.draw(st.sampled_from(self.held))
        for block, link in zip(blocks, links(len(blocks), first=first), strict=True):
            self.pool.seal(block, link)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ahead=st.integers(0, 2))
    def release(self, data: st.DataObject, ahead: int) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.release(self.held.pop(index), self.step + ahead)

    @rule()
    def complete(self) -> None:
        self.step += 1
        self.pool.complete(self.step)

    @invariant()
    def balanced(self) -> None:
        self.pool.check()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
