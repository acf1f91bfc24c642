"""Which connection a call takes."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from itertools import chain, repeat
from unittest.mock import Mock

from headrace.client import channel
from headrace.lines import Lines
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scripted_router import ScriptedRouter, serving

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


async def test_who_dials_a_frozen_router_dials_again_beside_and_uses_what_stands() -> None:
    """Routers that share a port: which one a connection comes to is chance."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # takes connections, and says nothing
        async with serving(ScriptedRouter()) as living:
            targets = chain([f"127.0.0.1:{frozen.getsockname()[1]}"], repeat(living))
            shared = Lines(["shared:1"], lambda address: channel(next(targets), None))
            taken = [shared.take(), shared.take()]
            reached = await asyncio.gather(*(shared.reach(each, 30) for each in taken))
            assert reached[0] is reached[1]
            assert (reached[0].stands, reached[0].calls, taken[0].calls) == (True, 2, 0)
            assert shared.take() is reached[0]
            await shared.close()


async def test_who_has_no_time_left_does_not_wait_for_a_frozen_router() -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        alone = Lines([f"127.0.0.1:{frozen.getsockname()[1]}"], lambda address: channel(address, None))
        taken = alone.take()
        assert await alone.reach(taken, 0.01) is taken
        await alone.close()
