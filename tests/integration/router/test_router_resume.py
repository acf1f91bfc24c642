"""A session breaks: its worker may be back with what it holds; else all goes on elsewhere, exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from headrace.v1 import router_pb2, session_pb2, types_pb2

from services.router.continuity import failover
from services.router.continuity.failover import MOST_BREAKS
from services.router.housekeeping import TICKS_A_SURVEY
from tests.support.router_house import House, open_house, read
from tests.support.scripted_worker import ScriptedWorker, all_at_once, end, update
from tests.support.waiting import TIMEOUT_S, eventually

PROMPT = "The router sends"
ANSWER = " each request to the worker that will answer it first. 日本語 🎡"
Request = router_pb2.GenerateRequest
HANDLE = 77
SLOW_STEP_S = 0.2
KEPT = {"resume_grace_s": 2 * TIMEOUT_S}
"""Workers keep requests for longer than the router waits for them."""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, failover={"return_s": TIMEOUT_S}, session=KEPT) as it:
        yield it


@pytest.fixture
def ids(house: House) -> list[int]:
    return house.tokenizer.ids(ANSWER)


def held(submit: session_pb2.Submit, made: int, handle: int = HANDLE) -> session_pb2.HeldRequest:
    return session_pb2.HeldRequest(
        request_id=submit.request_id,
        attempt=submit.attempt,
        next_index=made,
        slot=submit.slot,
        handle=handle,
    )


async def back(house: House, earlier: ScriptedWorker, *jobs: session_pb2.HeldRequest) -> ScriptedWorker:
    """The same process in a new session."""
    worker = house.worker(worker_id=earlier.worker_id, incarnation=earlier.incarnation, held=jobs)
    return await worker.connect()


async def tokens(house: House, count: int) -> None:
    await eventually(lambda: house.metric("headrace_output_tokens_total") == count, f"{count} tokens")


async def test_a_worker_that_is_back_goes_on_with_what_it_holds(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="same").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await first.submitted()
    first.say(update(submit, 0, ids[:4]))
    await tokens(house, 4)
    await first.die()
    second = await back(house, first, held(submit, made=7))
    assert second.welcome is not None
    [resume] = second.welcome.resume
    assert (resume.attempt, resume.next_index) == (1, 4)
    assert resume.handle == HANDLE
    on = session_pb2.Submit(slot=resume.slot, attempt=resume.attempt)
    second.say(update(on, 4, ids[4:], end()))
    answer = await read(call)
    assert (answer.ids, answer.text) == (ids, ANSWER)
    assert answer.finished is not None
    assert (answer.finished.attempts, answer.finished.worker_id) == (1, "same")
    assert answer.finished.usage.output_tokens == len(ids)
    assert house.metric("headrace_requests_resumed_total") == 1
    assert house.metric("headrace_requests_moved_total") == 0
    assert not second.submits


async def test_what_the_worker_holds_no_more_is_submitted_again_at_once(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="same").connect()
    calls = [house.stub.Generate(Request(text=PROMPT)) for _ in range(2)]
    await first.submitted(2)
    kept, lost = first.submits
    first.say(update(kept, 0, ids[:3]), update(lost, 0, ids[:2]))
    await tokens(house, 5)
    await first.die()
    second = await back(house, first, held(kept, made=3))
    assert second.welcome is not None
    assert [each.handle for each in second.welcome.resume] == [HANDLE]
    again = await second.submitted()
    assert (again.request_id, again.attempt, again.next_index) == (lost.request_id, 2, 2)
    [resume] = second.welcome.resume
    assert again.slot != resume.slot
    on = session_pb2.Submit(slot=resume.slot, attempt=1)
    second.say(update(on, 3, ids[3:], end()), update(again, 2, ids[2:], end()))
    assert [(await read(call)).ids for call in calls] == [ids, ids]


async def test_a_process_whose_sessions_break_again_and_again_loses_its_requests(
    house: House, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "SOON_S", TIMEOUT_S)
    worker = await house.worker(worker_id="same").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await worker.submitted()
    worker.say(update(submit, 0, ids[:4]))
    await tokens(house, 4)
    resumed = 0
    while worker.welcome and (worker.welcome.resume or not resumed):
        resumed += 1
        await worker.die()
        worker = await back(house, worker, held(submit, made=4))
        submit.slot = worker.welcome.resume[0].slot if worker.welcome and worker.welcome.resume else 0
    assert resumed == MOST_BREAKS + 1
    again = await worker.submitted()
    assert (again.attempt, again.next_index) == (2, 4)
    worker.say(update(again, 4, ids[4:], end()))
    assert (await read(call)).ids == ids


@pytest.mark.parametrize("field", ["attempt", "slot", "request_id", "next_index"])
async def test_a_held_request_that_is_not_the_one_is_not_resumed(
    house: House, ids: list[int], field: str
) -> None:
    first = await house.worker(worker_id="same").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await first.submitted()
    first.say(update(submit, 0, ids[:4]))
    await tokens(house, 4)
    await first.die()
    wrong = held(submit, made=4)
    changed = {"attempt": 2, "slot": 9, "request_id": "another", "next_index": 3}[field]
    setattr(wrong, field, changed)
    second = await back(house, first, wrong)
    assert second.welcome is not None
    assert not second.welcome.resume
    again = await second.submitted()
    second.say(update(again, 4, ids[4:], end()))
    assert (await read(call)).ids == ids


async def test_a_request_that_was_given_up_meanwhile_is_not_resumed(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="same").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await first.submitted()
    first.say(update(submit, 0, ids[:4]))
    await tokens(house, 4)
    await first.die()
    call.cancel()
    await eventually(lambda: not len(house.router._dispatcher), "nothing is in flight")
    second = await back(house, first, held(submit, made=9))
    assert second.welcome is not None
    assert not second.welcome.resume
    assert not second.submits


async def test_load_and_credit_are_the_workers_own_after_a_resume(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="same").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await first.submitted()
    first.say(update(submit, 0, ids[:1]))
    await tokens(house, 1)
    await first.die()
    await back(house, first, held(submit, made=1))
    [session] = house.router._dispatcher.workers
    await eventually(lambda: session.account.credit.sequences == 8, "its first grant")
    view = session.view(0.0)
    assert view.credit.sequences == 8, "what goes on takes no credit again"
    assert view.sequences == 1
    call.cancel()


async def test_another_process_of_that_name_moves_all_at_once(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="same").connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await first.submitted()
    first.say(update(submit, 0, ids[:4]))
    await tokens(house, 4)
    await first.die()
    second = await house.worker(worker_id="same", held=[held(submit, made=4)]).connect()
    assert second.welcome is not None
    assert not second.welcome.resume
    again = await second.submitted()
    assert (again.attempt, again.next_index) == (2, 4)
    second.say(update(again, 4, ids[4:], end()))
    assert (await read(call)).ids == ids


async def test_who_is_not_back_in_time_loses_its_requests_and_a_late_return_is_fenced(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path, failover={"return_s": 0.1}) as house:
        ids = house.tokenizer.ids(ANSWER)
        first = await house.worker(worker_id="late").connect()
        call = house.stub.Generate(Request(text=PROMPT))
        submit = await first.submitted()
        first.say(update(submit, 0, ids[:4]))
        await tokens(house, 4)
        other = await house.worker(worker_id="other").connect()
        await first.die()
        again = await other.submitted()
        assert (again.attempt, again.next_index) == (2, 4)
        late = await back(house, first, held(submit, made=20))
        assert late.welcome is not None
        assert not late.welcome.resume
        late.say(update(submit, 4, [9, 9, 9], end()))
        other.say(update(again, 4, ids[4:], end()))
        answer = await read(call)
        assert answer.ids == ids
        assert answer.finished is not None
        assert answer.finished.usage.output_tokens == len(ids)
        assert house.metric("headrace_output_tokens_total") == len(ids), "each token is counted once"
        assert house.metric("headrace_prompt_tokens_total") == answer.finished.usage.prompt_tokens


async def test_an_engine_that_still_hangs_gets_nothing_when_its_worker_is_back(
    house: House, ids: list[int]
) -> None:
    stuck = session_pb2.Progress(steps=9, has_work=True, since_last_step_us=60_000_000)
    hung = await house.worker(worker_id="hung").connect(beat=False)
    call = house.stub.Generate(Request(text=PROMPT, latency_class=types_pb2.LATENCY_CLASS_STANDARD))
    await hung.submitted()
    await eventually(lambda: hung.say(progress=stuck) or hung.status is not None, "it is closed")
    assert hung.status is grpc.StatusCode.UNAVAILABLE
    again = house.worker(worker_id="hung", incarnation=hung.incarnation)
    await again.connect(beat=False, progress=stuck)
    good = await house.worker(worker_id="good").connect()
    submit = await good.submitted()
    good.say(update(submit, 0, ids, end()))
    assert (await read(call)).ids == ids
    assert not again.submits


async def test_a_poison_request_is_quarantined_and_its_neighbours_go_on(tmp_path: Path) -> None:
    async with open_house(tmp_path, failover={"return_s": 0.0}) as house:
        ids = house.tokenizer.ids(ANSWER)
        workers = [await house.worker(worker_id="w0").connect()]
        good = [house.stub.Generate(Request(text=PROMPT)) for _ in range(3)]
        await workers[0].submitted(3)
        workers[0].say(*(update(each, 0, ids[:2]) for each in workers[0].submits))
        await tokens(house, 6)
        poison = house.stub.Generate(Request(text="poison"))
        await workers[0].submitted(4)
        doomed = workers[0].submits[3].request_id
        for number in (1, 2):
            await workers[-1].die()
            workers.append(await house.worker(worker_id=f"w{number}").connect())
            if number == 1:
                await workers[1].submitted(4)
                running = [each for each in workers[1].submits if each.request_id != doomed]
                workers[1].say(*(update(each, 2, ids[2:3]) for each in running))
                await tokens(house, 9)
        await workers[2].submitted(3)
        workers[2].say(*(update(each, 3, ids[3:], end()) for each in workers[2].submits))
        assert [(await read(call)).ids for call in good] == [ids] * 3
        answer = await read(poison)
        assert answer.error is not None
        assert "two workers died" in (answer.error.details() or "")
        assert doomed not in {each.request_id for each in workers[2].submits}


async def test_streams_leave_a_draining_worker_while_it_still_runs(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        ids = house.tokenizer.ids(ANSWER)
        leaving = await house.worker(worker_id="leaving").connect()
        calls = [house.stub.Generate(Request(text=PROMPT)) for _ in range(4)]
        await leaving.submitted(4)
        leaving.say(*(update(each, 0, ids[:3]) for each in leaving.submits))
        await tokens(house, 12)
        leaving.say(draining=session_pb2.Draining(remaining_ms=30_000))
        await eventually(lambda: leaving.idle, "it says so")
        assert not leaving.cancels, "nobody else is there: they stay"
        await house.worker(worker_id="other", script=all_at_once(ids)).connect()
        await leaving.cancelled(4)
        for call in calls:
            answer = await read(call)
            assert answer.ids == ids
            assert answer.finished is not None
            assert (answer.finished.worker_id, answer.finished.attempts) == ("other", 2)


@pytest.mark.parametrize("moving", [True, False])
async def test_a_stream_moves_to_a_worker_that_ends_it_sooner(tmp_path: Path, moving: bool) -> None:
    async with open_house(tmp_path, failover={"moving": moving, "moving_stay_s": 0.0}) as house:
        ids = house.tokenizer.ids(ANSWER)
        slow = await house.worker(worker_id="slow").connect()
        slow.say(step_model=session_pb2.StepModel(a=SLOW_STEP_S, b=1e-4, c=1e-9, d=1e-8, e=1e-3))
        call = house.stub.Generate(Request(text=PROMPT, max_tokens=1000))
        submit = await slow.submitted()
        await asyncio.sleep(SLOW_STEP_S)  # it is believed to be as slow as it shows
        slow.say(update(submit, 0, ids[:3]))
        await tokens(house, 3)
        fast = await house.worker(worker_id="fast").connect()
        fast.say(step_model=session_pb2.StepModel(a=0.03, b=1e-5, c=1e-10, d=1e-9, e=1e-4))
        if not moving:
            dispatcher = house.router._dispatcher
            surveyed = dispatcher.housekeeping.ticks + 2 * TICKS_A_SURVEY
            await eventually(lambda: dispatcher.housekeeping.ticks > surveyed, "two surveys")
            assert not slow.cancels
            slow.say(update(submit, 3, ids[3:], end()))
        else:
            again = await fast.submitted()
            assert (again.attempt, again.next_index) == (2, 3)
            assert (await slow.cancelled()).slot == submit.slot
            fast.say(update(again, 3, ids[3:], end()))
        assert (await read(call)).ids == ids
