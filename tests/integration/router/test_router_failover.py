"""Workers that die, fall silent, give back, or talk nonsense: the client's stream goes on exactly once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from headrace.v1 import router_pb2, session_pb2, types_pb2

from tests.support.router_house import House, details, open_house, read
from tests.support.scripted_worker import ScriptedWorker, all_at_once, end, update
from tests.support.waiting import eventually

PROMPT = "The router sends"
ANSWER = " each request to the worker that will answer it first. 日本語 🎡"
Request = router_pb2.GenerateRequest


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as it:
        yield it


@pytest.fixture
def ids(house: House) -> list[int]:
    return house.tokenizer.ids(ANSWER)


async def go_silent(worker: ScriptedWorker) -> None:
    worker.mute()


@pytest.mark.parametrize("harm", [ScriptedWorker.die, ScriptedWorker.leave, go_silent])
async def test_a_stream_goes_on_elsewhere_from_the_next_token(
    house: House, ids: list[int], harm: Callable[[ScriptedWorker], Awaitable[None]]
) -> None:
    first = await house.worker(worker_id="first").connect()
    call = house.stub.Generate(Request(text=PROMPT, stop=["first. "]))
    submit = await first.submitted()
    for index in range(5):
        first.say(update(submit, index, [ids[index]]))
    await eventually(lambda: house.metric("headrace_output_tokens_total") == 5, "five tokens")
    second = await house.worker(worker_id="second", script=all_at_once(ids)).connect()
    await harm(first)
    answer = await read(call)
    assert answer.error is None
    assert answer.text == ANSWER.partition("first. ")[0]
    assert answer.finished is not None
    assert (answer.finished.worker_id, answer.finished.attempts) == ("second", 2)
    again = await second.submitted()
    assert (again.attempt, again.next_index, list(again.delivered_ids)) == (2, 5, ids[:5])
    assert again.request_id == submit.request_id
    assert again.sampling == submit.sampling


async def test_late_news_of_a_silent_worker_change_nothing(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="first").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await first.submitted()
    second = await house.worker(worker_id="second").connect()
    first.mute()
    again = await second.submitted()
    first.say(update(submit, 0, [9, 9, 9], end()))
    second.say(update(again, 0, ids, end()))
    answer = await read(call)
    assert (answer.ids, answer.text) == (ids, ANSWER)


async def test_duplicates_are_dropped_and_a_gap_starts_another_attempt(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await worker.submitted()
    worker.say(update(submit, 0, ids[:3]))
    worker.say(update(submit, 0, ids[:3]))
    worker.say(update(submit, 1, ids[1:5]))
    worker.say(update(submit, 7, ids[7:9]))
    again = await worker.submitted(2)
    assert (again.next_index, again.attempt) == (5, 2)
    assert (await worker.cancelled()).slot == submit.slot
    worker.say(update(submit, 5, [1, 1, 1], end(session_pb2.END_REASON_CANCELLED)))
    worker.say(update(again, 5, ids[5:], end()))
    answer = await read(call)
    assert (answer.ids, answer.text) == (ids, ANSWER)
    assert house.metric("headrace_bad_frames_total", kind="index_gap") == 1


async def test_a_request_that_is_given_back_runs_again_at_its_place(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="first").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await first.submitted()
    first.say(update(submit, 0, ids[:4]))
    await house.worker(worker_id="second", script=all_at_once(ids)).connect()
    back = session_pb2.Returned(
        slot=submit.slot, attempt=1, reason=session_pb2.RETURN_REASON_DRAINING, next_index=4
    )
    first.say(returned=[back], draining=session_pb2.Draining(remaining_ms=100))
    answer = await read(call)
    assert (answer.ids, answer.text) == (ids, ANSWER)
    assert answer.finished is not None
    assert answer.finished.worker_id == "second"


async def test_a_request_that_is_alone_on_two_workers_that_die_is_quarantined(house: House) -> None:
    call = house.stub.Generate(Request(text=PROMPT, latency_class=types_pb2.LATENCY_CLASS_STANDARD))
    for name in ("first", "second"):
        worker = await house.worker(worker_id=name).connect()
        await worker.submitted()
        await worker.die()
    answer = await read(call)
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.ABORTED
    assert details(answer.error)["ErrorInfo"].reason == "QUARANTINED"


async def test_the_third_lost_worker_ends_a_request(house: House, ids: list[int]) -> None:
    calls = [house.stub.Generate(Request(text=PROMPT)) for _ in range(2)]
    for number in range(3):
        worker = await house.worker(worker_id=f"w{number}").connect()
        await worker.submitted(2)
        worker.say(*(update(each, each.next_index, [ids[number]]) for each in worker.submits))
        await eventually(
            lambda wanted=2 * (number + 1): house.metric("headrace_output_tokens_total") == wanted,  # type: ignore[misc]
            "its tokens",
        )
        await worker.die()
    for call in calls:
        answer = await read(call)
        assert answer.ids == ids[:3]
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.ABORTED
        assert details(answer.error)["ErrorInfo"].reason == "STREAM_LOST"


async def test_a_restarted_worker_replaces_its_earlier_session(house: House, ids: list[int]) -> None:
    earlier = await house.worker(worker_id="same").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    await earlier.submitted()
    await house.worker(worker_id="same", script=all_at_once(ids)).connect()
    answer = await read(call)
    assert answer.ids == ids
    assert await earlier.ended() is grpc.StatusCode.ABORTED


async def test_of_two_processes_of_one_name_the_later_stays_until_it_leaves(
    house: House, ids: list[int]
) -> None:
    earlier = await house.worker(worker_id="same").connect()
    later = await house.worker(worker_id="same").connect()
    assert await earlier.ended() is grpc.StatusCode.ABORTED
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await later.submitted()
    with pytest.raises(grpc.aio.AioRpcError, match="needs a worker_id of its own"):
        await house.worker(worker_id="same", incarnation=earlier.incarnation).connect()
    later.say(update(submit, 0, ids, end()))
    answer = await read(call)
    assert (answer.error, answer.ids) == (None, ids)
    await later.leave()
    await eventually(lambda: not list(house.router._dispatcher.workers), "it has left")
    back = await house.worker(worker_id="same", incarnation=earlier.incarnation).connect()
    assert back.welcome is not None


async def test_an_engine_fault_fails_one_request_and_no_other(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    calls = [house.stub.Generate(Request(text=PROMPT)) for _ in range(2)]
    await worker.submitted(2)
    bad, good = worker.submits
    worker.say(
        update(bad, 0, [], end(session_pb2.END_REASON_ERROR, message="out of luck")),
        update(good, 0, ids, end()),
    )
    answers = [await read(call) for call in calls]
    failed = [each.error for each in answers if each.error is not None]
    assert [each.code() for each in failed] == [grpc.StatusCode.INTERNAL]
    assert failed[0].details() == "out of luck"
    assert [each.text for each in answers if each.error is None] == [ANSWER]


async def test_nonsense_from_one_worker_does_not_touch_another(house: House, ids: list[int]) -> None:
    mad = await house.worker(worker_id="mad", sequences=0).connect()
    good = await house.worker(worker_id="good").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await good.submitted()
    for slot in range(20):
        mad.say(session_pb2.SequenceUpdate(slot=slot, attempt=1, token_ids=[1, 2, 3], end=end()))
    await eventually(
        lambda: house.metric("headrace_bad_frames_total", kind="unknown_slot") == 20, "they were counted"
    )
    good.say(update(submit, 0, ids, end()))
    assert (await read(call)).text == ANSWER
