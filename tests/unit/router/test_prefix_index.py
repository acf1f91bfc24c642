"""The index says what the workers' events say: in any order, with joins, leaves and digests that collide."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.router.policy.digest_table import DigestTable
from services.router.policy.expected import EXPECTED_S
from services.router.policy.prefix_index import PrefixIndex
from services.router.policy.ticket import Digests
from services.router.policy.trails import BLOCKS_KEPT, Trails

Name = tuple[int, int]
FEW_FIRST_WORDS = [1, 2, (1 << 64) - 1]
NAMES: list[Name] = [
    *((first, second) for first in FEW_FIRST_WORDS for second in range(40)),
    *((first, 5) for first in range(10, 130)),
]


def digests(names: list[Name] | range) -> Digests:
    return np.array(list(names), np.uint64).reshape(-1, 2)


def random_digests(count: int, seed: int = 0) -> Digests:
    draw = np.random.default_rng(seed)
    return draw.integers(1, 1 << 63, (count, 2), np.uint64)


class IndexMachine(RuleBasedStateMachine):
    """An index beside the sets that it stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.truth: dict[str, set[Name]] = {}
        self.expected: dict[str, dict[Name, float]] = {}
        self.now = 0.0

    names = st.lists(st.sampled_from(NAMES), max_size=60)
    workers = st.integers(0, 11).map("w{}".format)

    @rule(key=workers)
    def join_or_leave(self, key: str) -> None:
        if key in self.truth:
            self.index.leave(key)
            del self.truth[key], self.expected[key]
        else:
            self.index.join(key, len(NAMES))
            self.truth[key], self.expected[key] = set(), {}

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), names=names)
    def stored(self, data: st.DataObject, names: list[Name]) -> None:
        key = self._some(data)
        assert self.index.stored(key, digests(names)) == 0
        self.truth[key] |= set(names)
        for name in names:
            self.expected[key].pop(name, None)

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), names=names)
    def removed(self, data: st.DataObject, names: list[Name]) -> None:
        key = self._some(data)
        self.index.removed(key, digests(names))
        self.truth[key] -= set(names)
        for name in names:
            self.expected[key].pop(name, None)

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), names=names)
    def replaced(self, data: st.DataObject, names: list[Name]) -> None:
        key = self._some(data)
        self.index.replace(key, digests(names))
        self.truth[key], self.expected[key] = set(names), {}

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), names=names)
    def expected_soon(self, data: st.DataObject, names: list[Name]) -> None:
        key = self._some(data)
        pending = self.expected[key]
        self.index.expect(key, digests(names), self.now)
        if len(pending) + len(names) <= len(NAMES):
            for name in set(names) - self.truth[key] - set(pending):
                pending[name] = self.now + EXPECTED_S

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.index.expire(self.now)
        for key, pending in self.expected.items():
            self.expected[key] = {name: until for name, until in pending.items() if until > self.now}

    @invariant()
    def every_chain_is_answered_exactly(self) -> None:
        for start in range(0, len(NAMES), 7):
            chain = NAMES[start : start + 25]
            hits = self.index.match(digests(chain))
            assert hits.shape == (self.index.width,)
            for key, position in self.index.positions.items():
                assert hits[position] == len(list(takewhile(self._keeps(key).__contains__, chain)))
            assert not hits[[each for each in range(self.index.width) if each not in self._positions()]].any()

    @invariant()
    def counts_are_exact(self) -> None:
        keeps = {key: self._keeps(key) for key in self.truth}
        assert {key: self.index.kept(key) for key in self.truth} == {k: len(v) for k, v in keeps.items()}
        assert len(self.index) == len(set[Name]().union(*keeps.values()))

    def _keeps(self, key: str) -> set[Name]:
        return self.truth[key] | set(self.expected[key])

    def _positions(self) -> set[int]:
        return set(self.index.positions.values())

    def _some(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.truth)))


IndexMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestIndexIsTheTruth = IndexMachine.TestCase


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 700), st.booleans()), max_size=25),
    st.integers(0, 3),
)
def test_table_is_a_dict_while_it_grows_and_shrinks(changes: list[tuple[int, int, bool]], moves: int) -> None:
    table, truth = DigestTable(), dict[Name, int]()
    names = random_digests(3700)
    names[::3, 0] = names[0, 0]
    for start, count, stays in changes:
        part = names[start : start + count]
        numbers = np.full(len(part), start + 1 if stays else 0, np.uint32)
        table.put(part[:, 0].copy(), part[:, 1].copy(), numbers)
        for low, high in part.tolist():
            truth[low, high] = start + 1 if stays else 0
        for _ in range(moves):
            table.move(100)
        found = table.numbers(names[:, 0].copy(), names[:, 1].copy()).tolist()
        assert found == [truth.get((low, high), 0) for low, high in names.tolist()]
        for chain in (part, names[start:], names[2 * start // 3 :]):
            walked = table.walk(chain[:, 0].copy(), chain[:, 1].copy()).tolist()
            wanted = [truth.get((low, high), 0) for low, high in chain.tolist()]
            assert list(takewhile(bool, walked)) == list(takewhile(bool, wanted))
        assert len(table) == sum(map(bool, truth.values()))


def test_a_block_costs_less_than_100_bytes_while_the_table_grows() -> None:
    index = PrefixIndex()
    index.join("w", 1_000_000)
    most = 0.0
    for seed in range(120):
        index.stored("w", random_digests(1000, seed))
        if len(index) >= 5_000:
            most = max(most, index.nbytes / len(index))
    assert len(index) == 120_000
    assert 20 < most < 100


def test_trails_of_many_chains_do_not_add_up() -> None:
    trails = Trails()
    for name in range(100):
        trails.put(name, np.arange(BLOCKS_KEPT // 10))
    trails.put(99, np.arange(5))
    assert sum(trails.get(name) is not None for name in range(100)) == 10
    trails.put(-1, np.arange(BLOCKS_KEPT + 1))
    assert all(trails.get(name) is None for name in range(-1, 100))


def test_chains_that_end_alike_are_told_apart() -> None:
    index, long = PrefixIndex(), random_digests(50)
    position = index.join("w", 1000)
    index.stored("w", long[:40])
    index.stored("w", long[49:])
    for chain, kept in ((long, 40), (long[30:], 10), (long[49:], 1), (long[45:], 0), (long, 40)):
        assert index.match(chain)[position] == kept


def test_what_a_worker_has_told_of_ends_where_expectation_begins() -> None:
    index, chain = PrefixIndex(), random_digests(100)
    position = index.join("w", 1000)
    for told in (0, 1, 40, 99, 100):
        index.replace("w", chain[:told])
        index.expect("w", chain, 0.0)
        assert [index.told(position, chain[:blocks]) for blocks in range(101)] == [
            min(told, blocks) for blocks in range(101)
        ]


def test_an_emptied_index_gives_its_memory_back() -> None:
    index = PrefixIndex()
    index.join("w", 100_000)
    empty = index.nbytes
    index.stored("w", random_digests(50_000))
    index.leave("w")
    for tick in range(2000):
        index.expire(tick * 0.1)
    assert len(index) == 0
    assert index.nbytes == empty


def test_a_worker_cannot_keep_more_than_its_blocks() -> None:
    index = PrefixIndex()
    index.join("w", 100)
    blocks = random_digests(150)
    assert index.stored("w", blocks[:90]) == 0
    assert index.stored("w", blocks) == 50
    assert index.kept("w") == 100
    index.removed("w", blocks[:10])
    assert index.stored("w", blocks[140:]) == 0


def test_positions_stay_while_others_come_and_go() -> None:
    index = PrefixIndex()
    places = {f"w{number}": index.join(f"w{number}", 10) for number in range(40)}
    for number in range(0, 40, 3):
        index.leave(f"w{number}")
        del places[f"w{number}"]
    for number in range(100, 150):
        places[f"w{number}"] = index.join(f"w{number}", 10)
    assert index.positions == places
    assert len(set(places.values())) == len(places)


def test_a_new_worker_inherits_nothing_of_the_position_it_gets() -> None:
    index = PrefixIndex()
    blocks = random_digests(40)
    position = index.join("old", 100)
    index.expect("old", blocks[:30], 0.0)
    index.stored("old", blocks[20:])
    index.leave("old")
    assert index.join("new", 100) == position
    assert not index.match(blocks).any()
    index.stored("new", blocks[:30])
    index.expire(100.0)
    assert index.match(blocks)[position] == 30


def test_an_expectation_ends_even_when_the_clock_jumps_back() -> None:
    index = PrefixIndex()
    position = index.join("w", 100)
    blocks = random_digests(20)
    index.expect("w", blocks, 1_000_000.0)
    assert index.match(blocks)[position] == 20
    index.expire(5.0)
    assert not index.match(blocks).any()


def test_a_digest_of_zeroes_names_nothing() -> None:
    index = PrefixIndex()
    index.join("w", 100)
    for count in (1, 50):
        index.stored("w", digests([(0, number) for number in range(count)]))
    assert index.kept("w") == 0
    assert not index.match(digests([(0, 0)])).any()


def test_many_digests_with_the_same_first_word_are_told_apart() -> None:
    index = PrefixIndex()
    position = index.join("w", 20_000)
    blocks = random_digests(8_000)
    blocks[:, 0] = 77
    index.stored("w", blocks[:4_000])
    assert index.match(blocks[:500])[position] == 500
    assert not index.match(blocks[4_000:]).any()
    assert index.match(blocks[3_900:4_100])[position] == 100
