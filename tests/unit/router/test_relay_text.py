"""Ids to text with stop strings across tokens and a minimum before they count."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.text import TokenTable
from services.router.relay.text import TextReader
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TABLE = TokenTable(TOKENIZER.to_str().encode())


def read_in(pieces: list[list[int]], stops: list[str], min_tokens: int = 0) -> tuple[str, int, str | None]:
    reader = TextReader(TABLE, stops, min_tokens)
    text, taken = "", 0
    for ids in pieces:
        found = reader.read(ids)
        text, taken = text + found.text, taken + found.taken
        if found.stop is not None:
            return text, taken, found.stop
    rest = reader.finish()
    return text + rest.text, taken, rest.stop


@settings(deadline=None)
@given(st.text(max_size=40), st.data())
def test_pieces_of_any_size_give_the_whole_text(text: str, data: st.DataObject) -> None:
    ids = TOKENIZER.encode(text).ids
    pieces, start = [], 0
    while start < len(ids):
        size = data.draw(st.integers(1, 5))
        pieces.append(ids[start : start + size])
        start += size
    assert read_in(pieces, []) == (TOKENIZER.decode(ids), len(ids), None)


@settings(deadline=None)
@given(st.text(alphabet="abc ", min_size=1, max_size=40), st.text(alphabet="abc", min_size=1, max_size=4))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: str) -> None:
    ids = TOKENIZER.encode(text).ids
    whole = TOKENIZER.decode(ids)
    for pieces in ([ids], [[each] for each in ids]):
        found, taken, match = read_in(pieces, [stop])
        assert found == whole.partition(stop)[0]
        assert (match == stop) == (stop in whole)
        assert stop in TOKENIZER.decode(ids[:taken]) or match is None


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 3, 4, 7])
def test_a_stop_string_does_not_count_before_the_minimum(min_tokens: int) -> None:
    ids = TOKENIZER.encode("z").ids * 3 + TOKENIZER.encode("q").ids + TOKENIZER.encode("z").ids * 4
    text, taken, match = read_in([ids], ["z"], min_tokens)
    expected = {0: 1, 1: 1, 2: 2, 3: 3, 4: 5, 7: 7}[min_tokens]
    assert (match, taken) == ("z", expected)
    assert text == TOKENIZER.decode(ids[: taken - 1])
