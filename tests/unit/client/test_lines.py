"""Which connection a call takes."""

from __future__ import annotations

from collections import Counter
from unittest.mock import Mock

from headrace.lines import Lines
from hypothesis import given
from hypothesis import strategies as st

ADDRESSES = ("a:1", "b:1", "c:1")


def lines(*addresses: str) -> Lines:
    return Lines(addresses or ADDRESSES, lambda address: Mock())


def test_calls_take_connections_in_turn() -> None:
    several = lines()
    assert Counter(several.take().address for _ in range(9)) == dict.fromkeys(ADDRESSES, 3)


@given(st.integers(0, 10), st.integers(0, 10))
def test_where_a_connection_broke_nobody_asks_while_there_is_another(before: int, others: int) -> None:
    several = lines()
    for _ in range(before):
        several.take()
    broken = several.take()
    several.broke(broken)
    taken = {several.take().address for _ in range(others)}
    assert broken.address not in taken


def test_where_all_broke_the_one_that_did_first_is_asked_again() -> None:
    several = lines("a:1", "b:1")
    first, second = several.take(), several.take()
    several.broke(first)
    several.broke(second)
    assert several.take().address == first.address


def test_the_only_address_is_asked_whatever_broke() -> None:
    alone = lines("a:1")
    alone.broke(alone.take())
    assert alone.take().address == "a:1"
