"""What waits for a client: first token at once, merging, one end, slow readers."""

from __future__ import annotations

import asyncio

import pytest
from headrace.v1 import router_pb2

from services.common.errors import Cancelled, SlowConsumer
from services.router.relay.outlet import Flush, Outlet, Patience
from tests.support.readers import Reader
from tests.support.waiting import eventually

PATIENT = Patience(1 << 30, 1e9)
NEVER = Flush(3600.0, 1 << 30)
AT_ONCE = Flush(0.0, 1)


def seen(reader: Reader) -> list[tuple[list[int], str, int]]:
    return [(list(each.token_ids), each.text, each.index) for each in reader.deltas]


async def settled() -> None:
    """What can be said has been said."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_token_goes_at_once_whatever_the_class() -> None:
    outlet = Outlet(NEVER, PATIENT)
    reader = Reader(outlet)
    await settled()
    outlet.push([7], "a")
    assert seen(reader) == [([7], "a", 0)]
    reader.leave()


async def test_what_came_before_the_reader_goes_when_it_is_there() -> None:
    outlet = Outlet(NEVER, PATIENT)
    outlet.push([7], "a")
    reader = Reader(outlet)
    await reader.read()
    assert seen(reader) == [([7], "a", 0)]
    reader.leave()


async def test_later_tokens_wait_for_the_count_and_go_merged() -> None:
    outlet = Outlet(Flush(3600.0, 3), PATIENT)
    reader = Reader(outlet)
    await settled()
    outlet.push([1], "a")
    for number in (2, 3):
        outlet.push([number], str(number))
        await settled()
        assert len(reader.deltas) == 1
    outlet.push([4], "4")
    assert seen(reader)[1:] == [([2, 3, 4], "234", 1)]
    reader.leave()


async def test_later_tokens_go_when_their_time_is_up() -> None:
    outlet = Outlet(Flush(0.01, 1 << 30), PATIENT)
    outlet.push([1], "a")
    reader = Reader(outlet)
    await reader.read()
    outlet.push([2], "b")
    await reader.read()
    assert reader.ids == [1, 2]
    reader.leave()


async def test_tokens_that_come_while_a_message_is_written_travel_together() -> None:
    outlet = Outlet(AT_ONCE, PATIENT)
    reader = Reader(outlet, reads=0)
    await settled()
    for number in range(1, 6):
        outlet.push([number], "")
    await reader.read(2)
    assert [list(each.token_ids) for each in reader.deltas] == [[1], [2, 3, 4, 5]]
    reader.leave()


async def test_the_end_follows_all_output_and_nothing_follows_it() -> None:
    outlet = Outlet(NEVER, PATIENT)
    reader = Reader(outlet, reads=0)
    await settled()
    outlet.push([1], "a")
    outlet.push([2], "b")
    outlet.finish(router_pb2.Finished(request_id="r"))
    outlet.push([3], "c")
    outlet.fail(Cancelled("late"))
    await settled()
    assert reader.end is None, "two messages are still to be read"
    await reader.to_the_end()
    assert reader.ids == [1, 2]
    assert isinstance(reader.end, router_pb2.Finished)


async def test_an_error_is_raised_at_once_whatever_is_still_to_be_read() -> None:
    for reads in (0, 9):
        outlet = Outlet(AT_ONCE, PATIENT)
        reader = Reader(outlet, reads=reads)
        await settled()
        outlet.push([1], "a")
        outlet.push([2], "b")
        outlet.fail(Cancelled("gone"))
        await eventually(lambda it=reader: isinstance(it.end, Cancelled), "the error")  # type: ignore[misc]


async def test_what_waited_for_more_goes_ahead_of_an_error() -> None:
    outlet = Outlet(NEVER, PATIENT)
    reader = Reader(outlet)
    await settled()
    for number in range(1, 6):
        outlet.push([number], "a")
    outlet.fail(Cancelled("the deadline passed"))
    await eventually(lambda: isinstance(reader.end, Cancelled), "the error")
    assert reader.ids == [1, 2, 3, 4, 5]


async def test_an_error_that_was_there_before_the_reader_is_raised() -> None:
    outlet = Outlet(AT_ONCE, PATIENT)
    outlet.push([1], "a")
    outlet.fail(Cancelled("gone"))
    assert isinstance((await Reader(outlet).to_the_end()).end, Cancelled)
    with pytest.raises(Cancelled):
        await outlet.whole()


async def test_what_a_write_failed_with_ends_the_flow() -> None:
    outlet = Outlet(AT_ONCE, PATIENT)
    reader = Reader(outlet)
    await settled()
    outlet.push([1], "a")
    reader.deltas[0].index = 5  # it will miss a token
    outlet.push([2], "b")
    with pytest.raises(AssertionError, match="missing"):
        await reader.to_the_end()
    outlet.push([3], "c")
    assert reader.ids == [1], "nothing is written to it any more"


async def test_a_whole_answer_comes_in_one_message() -> None:
    for streamed in (True, False):
        outlet = Outlet(NEVER, PATIENT, whole=True)
        reading = Reader(outlet).to_the_end() if streamed else outlet.whole()
        waiting = asyncio.ensure_future(reading)
        await settled()
        outlet.push([1, 2], "ab")
        outlet.push([3], "c")
        await settled()
        assert not waiting.done()
        outlet.finish(router_pb2.Finished())
        found = await waiting
        finished = found.end if isinstance(found, Reader) else found
        assert isinstance(finished, router_pb2.Finished)
        assert (list(finished.token_ids), finished.text) == ([1, 2, 3], "abc")


async def test_a_reader_is_too_slow_by_tokens_or_by_time_but_only_while_a_write_is_stuck() -> None:
    outlet = Outlet(AT_ONCE, Patience(2, 60.0))
    outlet.push([1, 2, 3, 4], "a")
    assert outlet.too_slow(1e12) is None, "nothing is being written"
    reader = Reader(outlet, reads=0)
    await settled()
    assert outlet.too_slow(1e12) is None, "nothing waits"
    outlet.push([5, 6], "")
    now = asyncio.get_running_loop().time()
    assert outlet.too_slow(now) is None
    assert isinstance(outlet.too_slow(now + 61), SlowConsumer)
    outlet.push([7], "")
    assert isinstance(outlet.too_slow(now), SlowConsumer)
    reader.leave()


async def test_streams_of_one_worker_come_to_write_after_the_same_steps() -> None:
    outlets = [Outlet(Flush(3600.0, 4), PATIENT) for _ in range(4)]
    readers = [Reader(each) for each in outlets]
    await settled()
    wrote: list[list[int]] = [[] for _ in outlets]
    for step in range(1, 33):
        for begins, (outlet, reader) in enumerate(zip(outlets, readers, strict=True)):
            had = len(reader.deltas)
            if step > begins:
                outlet.add(step, "", step)
            if len(reader.deltas) > had:
                wrote[begins].append(step)
        await settled()
    assert [[step for step in each if step > 8] for each in wrote] == [list(range(12, 33, 4))] * 4
    assert all(len(each.token_ids) <= 4 for reader in readers for each in reader.deltas)
    for reader in readers:
        reader.leave()


async def test_what_waited_at_its_worker_waits_no_more() -> None:
    outlet = Outlet(Flush(3600.0, 8), PATIENT)
    assert outlet.merging == Flush(3600.0, 8)
    outlet.merged = True
    reader = Reader(outlet)
    await settled()
    outlet.push([1], "a")
    await settled()
    outlet.push([2, 3], "bc")
    await settled()
    outlet.add(4, "d", 7)
    assert seen(reader) == [([1], "a", 0), ([2, 3], "bc", 1), ([4], "d", 3)]
    reader.leave()


async def test_all_output_at_once_lets_it_wait_for_a_while_at_its_worker() -> None:
    outlet = Outlet(AT_ONCE, PATIENT, whole=True)
    assert outlet.merging.tokens > 1
    outlet.merged = True
    outlet.push([1], "a")
    outlet.push([2], "b")
    outlet.finish(router_pb2.Finished(request_id="r"))
    assert list((await outlet.whole()).token_ids) == [1, 2]
