from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.cache.frames import Entry
from services.cache.l1 import L1, OVERHEAD_BYTES

TAG = b"t" * 16
OTHER = b"o" * 16


def entry(size: int = 100, tag: bytes = TAG, ends_s: float = 1000.0) -> Entry:
    return Entry(bytes(size), tag, ends_s)


def room_for(count: int) -> int:
    return count * (OVERHEAD_BYTES + 100 + 1)


def test_least_recently_used_goes_first() -> None:
    l1 = L1(room_for(2))
    l1.put(b"a", entry())
    l1.put(b"b", entry())
    l1.get(b"a", 0)
    l1.put(b"c", entry())
    assert [l1.get(name, 0) is not None for name in (b"a", b"b", b"c")] == [True, False, True]


def test_an_entry_ends_at_its_time() -> None:
    l1 = L1(room_for(2))
    l1.put(b"a", entry(ends_s=10))
    assert l1.get(b"a", 9.9) is not None
    assert l1.get(b"a", 10) is None
    assert len(l1) == 0
    assert l1.bytes == 0


def test_a_value_larger_than_the_memory_is_not_kept_and_drops_its_older_self() -> None:
    l1 = L1(room_for(1))
    l1.put(b"a", entry())
    l1.put(b"a", entry(10_000))
    assert l1.get(b"a", 0) is None


def test_forget_takes_one_tenant_only() -> None:
    l1 = L1(room_for(10))
    l1.put(b"a", entry())
    l1.put(b"b", entry(tag=OTHER))
    l1.put(b"c", entry())
    assert l1.forget(TAG) == {b"a", b"c"}
    assert l1.get(b"b", 0) is not None
    assert l1.forget(TAG) == set()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.binary(max_size=2), st.integers(0, 2000), st.sampled_from([TAG, OTHER])),
        st.tuples(st.just("get"), st.binary(max_size=2), st.integers(0, 2000), st.just(TAG)),
        st.tuples(st.just("forget"), st.just(b""), st.just(0), st.sampled_from([TAG, OTHER])),
    ),
    max_size=60,
)


@given(operations)
def test_bytes_are_exact_and_bounded_and_no_wrong_value_comes_back(steps: list[tuple]) -> None:
    l1 = L1(5000)
    newest: dict[bytes, Entry] = {}
    for what, name, number, tag in steps:
        if what == "put":
            newest[name] = Entry(number.to_bytes(2, "little") * (number // 2), tag, number)
            l1.put(name, newest[name])
        elif what == "get":
            found = l1.get(name, float(number))
            assert found is None or (found == newest[name] and found.ends_s > number)
        else:
            l1.forget(tag)
            assert not any(each.tag == tag for each in l1._entries.values())
        held = sum(len(key) + len(each.value) + OVERHEAD_BYTES for key, each in l1._entries.items())
        assert l1.bytes == held <= 5000
        assert sum(map(len, l1._names.values())) == len(l1)
