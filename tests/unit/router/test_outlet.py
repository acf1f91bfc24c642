"""What waits for a client: first token at once, merging, one end, slow readers."""

from __future__ import annotations

import asyncio

import pytest
from headrace.v1 import router_pb2

from services.common.errors import Cancelled, SlowConsumer
from services.router.relay.outlet import Flush, Outlet, Patience
from tests.support.waiting import eventually

PATIENT = Patience(1 << 30, 1e9)
NEVER = Flush(3600.0, 1 << 30)


async def test_the_first_token_goes_at_once_whatever_the_class() -> None:
    outlet = Outlet(NEVER, PATIENT)
    outlet.push([7], "a")
    reply = await outlet.next()
    assert reply is not None
    assert (list(reply.delta.token_ids), reply.delta.text, reply.delta.index) == ([7], "a", 0)


async def test_later_tokens_wait_for_the_count_and_go_merged() -> None:
    outlet = Outlet(Flush(3600.0, 3), PATIENT)
    outlet.push([1], "a")
    await outlet.next()
    following = asyncio.ensure_future(outlet.next())
    for number in (2, 3):
        outlet.push([number], str(number))
        await asyncio.sleep(0)
        assert not following.done()
    outlet.push([4], "4")
    reply = await following
    assert reply is not None
    assert (list(reply.delta.token_ids), reply.delta.text, reply.delta.index) == ([2, 3, 4], "234", 1)


async def test_later_tokens_go_when_their_time_is_up() -> None:
    outlet = Outlet(Flush(0.01, 1 << 30), PATIENT)
    outlet.push([1], "a")
    await outlet.next()
    outlet.push([2], "b")
    reply = await outlet.next()
    assert reply is not None
    assert list(reply.delta.token_ids) == [2]


async def test_tokens_that_come_while_a_message_is_written_travel_together() -> None:
    outlet = Outlet(Flush(0.0, 1), PATIENT)
    outlet.push([1], "a")
    await outlet.next()
    for number in range(2, 6):
        outlet.push([number], "")
    reply = await outlet.next()
    assert reply is not None
    assert list(reply.delta.token_ids) == [2, 3, 4, 5]


async def test_the_end_follows_all_output_and_nothing_follows_it() -> None:
    outlet = Outlet(NEVER, PATIENT)
    outlet.push([1], "a")
    await outlet.next()
    outlet.push([2], "b")
    outlet.finish(router_pb2.Finished(request_id="r"))
    outlet.push([3], "c")
    outlet.fail(Cancelled("late"))
    kinds = []
    while (reply := await outlet.next()) is not None:
        kinds.append(reply.WhichOneof("event"))
    assert kinds == ["delta", "finished"]


async def test_an_error_wakes_the_reader_and_is_raised() -> None:
    outlet = Outlet(NEVER, PATIENT)
    waiting = asyncio.ensure_future(outlet.next())
    await asyncio.sleep(0)
    outlet.fail(Cancelled("gone"))
    with pytest.raises(Cancelled):
        await waiting


async def test_a_whole_answer_comes_in_one_message() -> None:
    outlet = Outlet(NEVER, PATIENT, whole=True)
    waiting = asyncio.ensure_future(outlet.next())
    outlet.push([1, 2], "ab")
    outlet.push([3], "c")
    await asyncio.sleep(0)
    assert not waiting.done()
    outlet.finish(router_pb2.Finished())
    reply = await waiting
    assert reply is not None
    assert (list(reply.finished.token_ids), reply.finished.text) == ([1, 2, 3], "abc")
    assert await outlet.next() is None


async def test_a_reader_is_too_slow_by_tokens_or_by_time_but_only_while_a_write_is_stuck() -> None:
    outlet = Outlet(Flush(0.0, 1), Patience(2, 60.0))
    outlet.push([1], "a")
    outlet.push([2, 3, 4], "")
    assert outlet.too_slow(1e12) is None, "nothing is being written"
    await outlet.next()
    assert outlet.too_slow(1e12) is None, "nothing waits"
    outlet.push([5, 6], "")
    now = asyncio.get_running_loop().time()
    assert outlet.too_slow(now) is None
    assert isinstance(outlet.too_slow(now + 61), SlowConsumer)
    outlet.push([7], "")
    assert isinstance(outlet.too_slow(now), SlowConsumer)


async def test_a_reader_that_waits_is_woken_once_a_message() -> None:
    outlet = Outlet(Flush(0.0, 1), PATIENT)
    messages = []

    async def read() -> None:
        while (reply := await outlet.next()) is not None:
            messages.append(list(reply.delta.token_ids))

    task = asyncio.ensure_future(read())
    for number in range(5):
        outlet.push([number], "")
        await eventually(lambda count=number + 1: len(messages) == count, "a message")  # type: ignore[misc]
    outlet.finish(router_pb2.Finished())
    await task
    assert messages == [[0], [1], [2], [3], [4], []]
