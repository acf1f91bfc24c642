from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.cache.frames import Entry, pack, unpack

tags = st.binary(min_size=16, max_size=16)
entries = st.builds(Entry, st.binary(max_size=300), tags, st.integers(0, 2**40).map(lambda ms: ms / 1000))


@given(st.binary(), entries)
def test_what_was_packed_comes_back(name: bytes, entry: Entry) -> None:
    assert unpack(name, pack(name, entry)) == entry


@given(st.binary(), entries, st.data())
def test_any_flipped_bit_or_cut_is_noticed(name: bytes, entry: Entry, data: st.DataObject) -> None:
    stored = bytearray(pack(name, entry))
    position = data.draw(st.integers(0, len(stored) - 1))
    stored[position] ^= 1 << data.draw(st.integers(0, 7))
    assert unpack(name, bytes(stored)) is None
    assert unpack(name, pack(name, entry)[:position]) is None


@given(st.binary(), st.binary(), entries)
def test_another_names_value_is_not_accepted(name: bytes, other: bytes, entry: Entry) -> None:
    assert unpack(other, pack(name, entry)) is None or name == other
