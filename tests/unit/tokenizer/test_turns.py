"""Tenants take turns, and short texts never stand behind long ones."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.tokenizer.text.errors import Overloaded
from services.tokenizer.text.items import PlainText
from services.tokenizer.text.jobs import Job, JobQueue
from services.tokenizer.text.turns import Turns

TENANTS = st.lists(st.sampled_from([b"a", b"b", b"c"]))
LONG_CHARS = 10


def job(tenant: bytes, chars: int = 1) -> Job:
    return Job([PlainText("x" * chars)], 1.0, tenant)


def queue(max_jobs: int = 100, max_chars: int = 1000) -> JobQueue:
    return JobQueue(max_jobs, max_chars, LONG_CHARS)


def drained(turns: Turns[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
    taken = []
    while turns:
        taken.append(turns.take())
    return taken


@given(TENANTS)
def test_a_tenants_texts_keep_their_order_and_none_is_lost(tenants: list[bytes]) -> None:
    turns: Turns[tuple[bytes, int]] = Turns()
    for number, tenant in enumerate(tenants):
        turns.add(tenant, (tenant, number))
    taken = drained(turns)
    for tenant in set(tenants):
        own = [number for owner, number in taken if owner == tenant]
        assert own == [number for number, owner in enumerate(tenants) if owner == tenant]


@given(TENANTS)
def test_a_tenants_nth_text_waits_for_n_texts_of_each_other_tenant(tenants: list[bytes]) -> None:
    turns: Turns[tuple[bytes, int]] = Turns()
    for number, tenant in enumerate(tenants):
        turns.add(tenant, (tenant, number))
    seen: dict[bytes, int] = {}
    for tenant, _ in drained(turns):
        seen[tenant] = seen.get(tenant, 0) + 1
        assert all(count <= seen[tenant] for count in seen.values())


@given(TENANTS, st.data())
def test_what_is_taken_out_never_comes(tenants: list[bytes], data: st.DataObject) -> None:
    turns: Turns[tuple[bytes, int]] = Turns()
    entries = [(tenant, number) for number, tenant in enumerate(tenants)]
    for entry in entries:
        turns.add(entry[0], entry)
    gone = [entry for entry in entries if data.draw(st.booleans())]
    for entry in gone:
        turns.remove(entry[0], entry)
    assert sorted(drained(turns)) == sorted(set(entries) - set(gone))


def test_what_is_tried_again_comes_first() -> None:
    turns: Turns[tuple[bytes, int]] = Turns()
    turns.add(b"a", (b"a", 1))
    turns.add_again((b"b", 2))
    turns.add_again((b"c", 3))
    turns.remove(b"c", (b"c", 3))
    assert drained(turns) == [(b"b", 2), (b"a", 1)]
    with pytest.raises(LookupError):
        turns.take()


async def test_who_takes_short_texts_only_is_given_no_long_one() -> None:
    waiting = queue()
    waiting.put(job(b"a", chars=LONG_CHARS + 1))
    short = asyncio.ensure_future(waiting.get(long_too=False))
    await asyncio.sleep(0)
    assert not short.done()
    chat = job(b"b")
    waiting.put(chat)
    assert await short is chat
    assert len(waiting) == 1


async def test_who_takes_both_kinds_takes_them_in_turn() -> None:
    waiting = queue()
    for chars in (1, 2, 3, 11, 12):
        waiting.put(job(b"a", chars))
    taken = [(await waiting.get(long_too=True)).chars for _ in range(5)]
    assert taken == [11, 1, 12, 2, 3]


async def test_a_taker_that_was_cancelled_takes_nothing() -> None:
    waiting = queue()
    first, second = (asyncio.ensure_future(waiting.get(long_too=True)) for _ in range(2))
    await asyncio.sleep(0)
    chat = job(b"a")
    waiting.put(chat)
    first.cancel()
    assert await second is chat


async def test_one_tenant_fills_half_of_the_queue_and_others_find_room() -> None:
    waiting = queue(max_jobs=4)
    waiting.put(job(b"a"))
    waiting.put(job(b"a"))
    with pytest.raises(Overloaded):
        waiting.put(job(b"a"))
    waiting.put(job(b"b"))


async def test_one_tenants_text_is_half_of_what_may_wait() -> None:
    waiting = queue(max_chars=20)
    mine = job(b"a", chars=10)
    waiting.put(mine)
    with pytest.raises(Overloaded):
        waiting.put(job(b"a"))
    waiting.put(job(b"b", chars=10))
    with pytest.raises(Overloaded):
        waiting.put(job(b"c"))
    waiting.give_up(mine)
    waiting.put(job(b"a", chars=10))
