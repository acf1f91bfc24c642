"""A stream is taken up: the router asks its workers, adopts what runs, computes on what does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from headrace.v1 import router_pb2, session_pb2, types_pb2

from services.common.identity import create_key
from tests.support.router_house import Answer, House, details, open_house, read
from tests.support.scripted_worker import ScriptedWorker, end, update
from tests.support.waiting import TIMEOUT_S, eventually

PROMPT = "The router sends"
ANSWER = " each request to the worker that will answer it first. 日本語 🎡"
CANCELLED = session_pb2.SequenceEnd(reason=session_pb2.END_REASON_CANCELLED)
HANDLE = 77
Request = router_pb2.GenerateRequest


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Says soon that nothing is left, but waits long for the answers of workers that are there."""
    async with open_house(tmp_path, session={"orphan_hold_s": 1.0, "lost_s": TIMEOUT_S}) as it:
        yield it


@pytest.fixture
def ids(house: House) -> list[int]:
    return house.tokenizer.ids(ANSWER)


class Broken:
    """A stream whose client was cut off after some tokens."""

    def __init__(self, submit: session_pb2.Submit, answer: Answer) -> None:
        self.submit = submit
        self.answer = answer

    def resume(self, house: House) -> Any:
        """The call that asks for the rest."""
        text_bytes = len(self.answer.text.encode())
        resume = {"request_id": self.submit.request_id, "next_index": len(self.answer.ids)}
        return house.stub.Generate(Request(resume={**resume, "text_bytes": text_bytes}))

    async def rest(self, call: Any) -> Answer:
        """Reads the rest after what there is."""
        return await read(call, self.answer)


async def broken(house: House, worker: ScriptedWorker, ids: Sequence[int], **options: Any) -> Broken:
    """A stream that broke off after `ids`."""
    call = house.stub.Generate(Request(text=PROMPT, request_id="cut", **options))
    submit = await worker.submitted()
    logprobs = [types_pb2.PositionLogprobs(chosen=-1.0)] * len(ids) if "sampling" in options else []
    worker.say(update(submit, 0, ids, logprobs=logprobs))
    answer = Answer()
    async for reply in call:
        answer.take(reply)
        if len(answer.ids) == len(ids):
            break
    call.cancel()
    cancel = await worker.cancelled()
    worker.say(update(session_pb2.Submit(slot=cancel.slot, attempt=cancel.attempt), 0, (), CANCELLED))
    return Broken(submit, answer)


async def claim(worker: ScriptedWorker) -> session_pb2.Claim:
    """What the router looks for, when it asks."""
    await eventually(lambda: any(frame.claims for frame in worker.frames), f"{worker.worker_id}: a claim")
    return next(each for frame in worker.frames for each in frame.claims)


async def adopted(worker: ScriptedWorker) -> session_pb2.Adopt:
    await eventually(lambda: any(frame.adoptions for frame in worker.frames), "an adoption")
    return next(each for frame in worker.frames for each in frame.adoptions)


async def tell(
    worker: ScriptedWorker,
    submit: session_pb2.Submit,
    output: Sequence[int],
    ending: session_pb2.SequenceEnd | None = None,
    **more: Any,
) -> None:
    """Answers the claim: this is the request, and it has made so much."""
    asked = await claim(worker)
    told = session_pb2.Submit()
    told.CopyFrom(submit)
    prompt = list(told.prompt_ids)
    for name in ("slot", "prompt_ids", "delivered_ids"):
        told.ClearField(name)
    head = {"submit": told, "handle": HANDLE, "output_tokens": len(output), "end": ending, **more}
    key: dict[str, Any] = {"claim_key": asked.claim_key, "found": True}
    worker.say(
        claimed=[
            session_pb2.Claimed(**key, **head),
            session_pb2.Claimed(**key, offset=0, ids=prompt),
            session_pb2.Claimed(**key, offset=len(prompt), ids=output, last=True),
        ]
    )


async def unknown(worker: ScriptedWorker) -> None:
    worker.say(claimed=[session_pb2.Claimed(claim_key=(await claim(worker)).claim_key, last=True)])


def continued(adopt: session_pb2.Adopt) -> session_pb2.Submit:
    return session_pb2.Submit(slot=adopt.slot, attempt=adopt.attempt)


def refused(answer: Answer) -> str:
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.NOT_FOUND
    reason: str = details(answer.error)["ErrorInfo"].reason
    return reason


async def test_what_runs_is_adopted_as_the_next_attempt(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    call = stream.resume(house)
    await tell(worker, stream.submit, ids[:9])
    adopt = await adopted(worker)
    assert (adopt.handle, adopt.attempt, adopt.next_index) == (HANDLE, 2, 9)
    assert adopt.claim_key == stream.submit.claim_key
    worker.say(update(continued(adopt), 9, ids[9:], end()))
    answer = await stream.rest(call)
    assert (answer.ids, answer.text) == (ids, ANSWER)
    assert answer.finished is not None
    assert (answer.finished.attempts, answer.finished.usage.output_tokens) == (2, len(ids))
    assert len(worker.submits) == 1
    assert house.metric("headrace_streams_taken_up_total", how="adopted") == 1


async def test_an_answer_to_a_call_that_is_gone_is_none_to_the_next_one(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    gone = stream.resume(house)
    await claim(worker)
    gone.cancel()
    await eventually(
        lambda: house.metric("headrace_requests_total", outcome="cancelled") == 2, "the call is gone"
    )
    call = stream.resume(house)
    await eventually(lambda: sum(len(frame.claims) for frame in worker.frames) == 2, "another claim")
    await unknown(worker)
    await tell(worker, stream.submit, ids[:9])
    worker.say(update(continued(await adopted(worker)), 9, ids[9:], end()))
    assert (await stream.rest(call)).text == ANSWER
    assert house.metric("headrace_bad_frames_total", kind="claimed") == 0


async def test_what_was_cancelled_is_computed_on_from_all_that_was_made(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    call = stream.resume(house)
    await tell(worker, stream.submit, ids[:9], CANCELLED)
    again = await worker.submitted(2)
    assert (list(again.delivered_ids), again.next_index, again.attempt) == (ids[:9], 9, 2)
    assert (again.claim_key, again.router_state) == (stream.submit.claim_key, stream.submit.router_state)
    assert (again.prompt_ids, again.sampling) == (stream.submit.prompt_ids, stream.submit.sampling)
    worker.say(update(again, 9, ids[9:], end()))
    answer = await stream.rest(call)
    assert (answer.ids, answer.text) == (ids, ANSWER)


@pytest.mark.parametrize(("orphaned", "computed"), [(False, 2), (True, 1)])
async def test_a_prompt_that_is_computed_again_for_who_left_counts_again(
    tmp_path: Path, orphaned: bool, computed: int
) -> None:
    keys, tenants, prompt = tmp_path / "keys.toml", tmp_path / "tenants.toml", range(100, 500)
    key: dict[str, Any] = {"metadata": (("authorization", f"Bearer {create_key(keys, 'acme')}"),)}
    tenants.write_text("[tenants.acme]\ntokens_per_minute = 600\n")  # in debt by twice the prompt, for 20 s
    async with open_house(tmp_path, keys_file=keys, tenants_file=tenants) as house:
        worker = await house.worker().connect()
        asked = Request(token_ids=types_pb2.TokenIds(ids=prompt), request_id="cut", max_tokens=8)
        left = house.stub.Generate(asked, **key)
        submit = await worker.submitted()
        left.cancel()
        cancel = await worker.cancelled()
        worker.say(update(session_pb2.Submit(slot=cancel.slot, attempt=cancel.attempt), 0, (), CANCELLED))
        call = house.stub.Generate(Request(resume={"request_id": "cut"}), **key)
        await tell(worker, submit, (), CANCELLED, orphaned=orphaned)
        worker.say(update(await worker.submitted(2), 0, [7], end()))
        assert (await read(call)).error is None
        more = house.stub.Generate(Request(text=PROMPT), **key)
        if computed == 1:
            worker.say(update(await worker.submitted(3), 0, [7], end()))
        answer = await read(more)
        code = answer.error.code() if answer.error is not None else grpc.StatusCode.OK
        assert code is (grpc.StatusCode.OK if computed == 1 else grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_what_has_ended_is_delivered(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    call = stream.resume(house)
    await tell(worker, stream.submit, ids, end())
    answer = await stream.rest(call)
    assert (answer.ids, answer.text) == (ids, ANSWER)
    assert answer.finished is not None
    assert (answer.finished.worker_id, answer.finished.attempts) == (worker.worker_id, 1)
    assert len(worker.submits) == 1


async def test_of_two_that_have_it_the_latest_attempt_is_it(house: House, ids: list[int]) -> None:
    first = await house.worker(worker_id="a").connect()
    stream = await broken(house, first, ids[:5])
    other = await house.worker(worker_id="b").connect()
    call = stream.resume(house)
    later = session_pb2.Submit()
    later.CopyFrom(stream.submit)
    later.attempt = 2
    await tell(first, stream.submit, ids[:12])
    await tell(other, later, ids[:8])
    adopt = await adopted(other)
    assert (adopt.attempt, adopt.next_index) == (3, 8)
    other.say(update(continued(adopt), 8, ids[8:], end()))
    assert (await stream.rest(call)).text == ANSWER
    assert not any(frame.adoptions for frame in first.frames)


async def test_tokens_whose_log_probabilities_are_lost_are_made_again(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5], sampling={"logprobs": 0})
    call = stream.resume(house)
    await tell(worker, stream.submit, ids[:9])
    again = await worker.submitted(2)
    assert list(again.delivered_ids) == ids[:5]
    logprobs = [types_pb2.PositionLogprobs(chosen=-1.0)] * len(ids[5:])
    worker.say(update(again, 5, ids[5:], end(), logprobs=logprobs))
    answer = await stream.rest(call)
    assert (answer.ids, len(answer.logprobs)) == (ids, len(ids))


async def test_a_worker_that_holds_it_no_more_when_asked_to_go_on_changes_nothing(
    house: House, ids: list[int]
) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    call = stream.resume(house)
    await tell(worker, stream.submit, ids[:9])
    adopt = await adopted(worker)
    reason = session_pb2.RETURN_REASON_NO_CREDIT
    gone = session_pb2.Returned(slot=adopt.slot, attempt=adopt.attempt, reason=reason, next_index=9)
    worker.say(returned=[gone])
    again = await worker.submitted(2)
    assert (list(again.delivered_ids), again.attempt) == (ids[:9], 3)
    worker.say(update(again, 9, ids[9:], end()))
    assert (await stream.rest(call)).text == ANSWER


async def test_a_router_that_has_just_started_waits_for_workers_to_attach(tmp_path: Path) -> None:
    async with open_house(tmp_path, session={"orphan_hold_s": TIMEOUT_S}) as house:
        ids = house.tokenizer.ids(ANSWER)
        worker = await house.worker(worker_id="a").connect()
        stream = await broken(house, worker, ids[:5])
        await worker.die()
        call = stream.resume(house)  # nobody is there: right after a worker was lost it may come back
        back = await house.worker(worker_id="a").connect()
        await tell(back, stream.submit, ids, end())
        assert (await stream.rest(call)).text == ANSWER


@pytest.mark.parametrize("wrong", ["offset", "count", "attempt", "key"])
async def test_what_contradicts_itself_is_counted_and_nothing_is_found(
    house: House, ids: list[int], wrong: str
) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    call = stream.resume(house)
    submit = session_pb2.Submit()
    submit.CopyFrom(stream.submit)
    if wrong == "attempt":
        submit.attempt = 2**32 - 1
    if wrong == "key":
        submit.claim_key = b"another"
    if wrong == "offset":
        submit.prompt_ids.append(3)
    await tell(worker, submit, ids, end(), **({"output_tokens": 3} if wrong == "count" else {}))
    assert refused(await stream.rest(call)) == "NOTHING_TO_RESUME"
    assert house.metric("headrace_bad_frames_total", kind="claimed") == 1


async def test_a_state_that_was_not_sealed_for_this_request_opens_nothing(
    house: House, ids: list[int]
) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    call = stream.resume(house)
    submit = session_pb2.Submit()
    submit.CopyFrom(stream.submit)
    submit.router_state = submit.router_state[:-1] + bytes([submit.router_state[-1] ^ 1])
    await tell(worker, submit, ids, end())
    assert refused(await stream.rest(call)) == "NOTHING_TO_RESUME"


async def test_where_no_worker_has_it_the_router_says_so_once_all_could_have_attached(
    house: House, ids: list[int]
) -> None:
    worker = await house.worker().connect()
    stream = await broken(house, worker, ids[:5])
    call = stream.resume(house)
    await unknown(worker)
    assert refused(await stream.rest(call)) == "NOTHING_TO_RESUME"


async def test_a_whole_answer_has_no_next_index(house: House) -> None:
    request = Request(resume={"request_id": "x", "next_index": 3}, stream=False)
    answer = await read(house.stub.Generate(request))
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.INVALID_ARGUMENT
