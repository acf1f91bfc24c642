"""A client's stream through a real router, from scripted workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from headrace.v1 import router_pb2, session_pb2, types_pb2

from tests.support.router_house import Answer, House, details, open_house, read
from tests.support.scripted_worker import all_at_once, end, update
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


async def test_a_stream_carries_the_text_and_ids_and_one_end(house: House, ids: list[int]) -> None:
    await house.worker(script=all_at_once(ids)).connect()
    answer = await read(house.stub.Generate(Request(text=PROMPT, request_id="mine")))
    assert answer.error is None
    assert (answer.text, answer.ids) == (ANSWER, ids)
    finished = answer.finished
    assert finished is not None
    assert finished.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert (finished.request_id, finished.model, finished.worker_id) == ("mine", "tiny", "worker-1")
    assert (finished.attempts, finished.seed, finished.cached_response) == (1, 0, False)
    assert finished.latency_class == types_pb2.LATENCY_CLASS_INTERACTIVE
    assert finished.usage.prompt_tokens == len(house.tokenizer.ids(PROMPT))
    assert finished.usage.output_tokens == len(ids)
    assert finished.timings.total_us >= finished.timings.first_token_us > 0


async def test_the_worker_gets_the_prompt_and_all_that_its_scheduler_needs(house: House) -> None:
    worker = await house.worker().connect()
    call = house.stub.Generate(
        Request(
            text=PROMPT,
            max_tokens=7,
            sampling=types_pb2.SamplingParams(temperature=0.5, stop_token_ids=[5]),
            latency_class=types_pb2.LATENCY_CLASS_STANDARD,
        ),
        timeout=60,
    )
    submit = await worker.submitted()
    call.cancel()
    assert list(submit.prompt_ids) == house.tokenizer.ids(PROMPT)
    assert (submit.prompt_tokens, submit.max_tokens, submit.attempt) == (len(submit.prompt_ids), 7, 1)
    assert submit.sampling.HasField("seed")
    assert submit.sampling.temperature == 0.5
    assert submit.sampling.top_p == 1
    assert 0 < submit.remaining_ms <= 61_000  # gRPC sends deadlines rounded up to three digits
    assert (submit.ttft_target_ms, submit.tpot_target_ms) == (2000, 80)
    assert submit.latency_class == types_pb2.LATENCY_CLASS_STANDARD
    assert 1 <= submit.expected_output_tokens <= 7
    assert (len(submit.kv_key), len(submit.tenant_tag)) == (32, 16)


async def test_a_chat_goes_through_the_template(house: House, ids: list[int]) -> None:
    worker = await house.worker(script=all_at_once(ids)).connect()
    chat = types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role="user", content="hello")])
    answer = await read(house.stub.Generate(Request(chat=chat)))
    assert answer.error is None
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert list((await worker.submitted()).prompt_ids) == house.tokenizer.ids(rendered)


async def test_ids_are_used_as_they_are(house: House, ids: list[int]) -> None:
    worker = await house.worker(script=all_at_once(ids)).connect()
    await read(house.stub.Generate(Request(token_ids=types_pb2.TokenIds(ids=[5, 6, 7]))))
    assert list((await worker.submitted()).prompt_ids) == [5, 6, 7]
    assert house.tokenizer.encoded == 0


async def test_the_whole_answer_comes_at_once_when_asked_for(house: House, ids: list[int]) -> None:
    await house.worker(script=all_at_once(ids)).connect()
    finished = await house.stub.GenerateUnary(Request(text=PROMPT))
    assert (finished.text, list(finished.token_ids)) == (ANSWER, ids)
    answer = await read(house.stub.Generate(Request(text=PROMPT, stream=False)))
    assert answer.messages == 1
    assert answer.finished is not None
    assert answer.finished.text == ANSWER
    assert answer.finished.latency_class == types_pb2.LATENCY_CLASS_STANDARD


def server_timing(trailer: str) -> dict[str, float]:
    parts = (part.partition(";dur=") for part in trailer.split(", "))
    return {name: float(duration_ms) for name, _, duration_ms in parts}


async def test_trailers_tell_the_timings_of_both_methods(house: House, ids: list[int]) -> None:
    def script(submit: session_pb2.Submit) -> list[session_pb2.SequenceUpdate]:
        usage = types_pb2.Usage(prompt_tokens=9, cached_tokens=2, output_tokens=len(ids))
        over = end(usage=usage, queue_us=50, prefill_us=700, decode_us=900)
        return [update(submit, 0, ids, over)]

    await house.worker(script=script).connect()
    answer = await read(house.stub.Generate(Request(text=PROMPT)))
    unary = house.stub.GenerateUnary(Request(text=PROMPT))
    finished = await unary
    for found in (answer.trailers, dict(await unary.trailing_metadata())):
        assert "cached=2" in str(found["headrace-usage"]).split(", ")
        assert "attempts=1" in str(found["headrace-run"]).split(", ")
        assert found["headrace-worker"] == "worker-1"
        spent_ms = server_timing(str(found["server-timing"]))
        assert (spent_ms["prefill"], spent_ms["decode"]) == (0.7, 0.9)
        assert spent_ms["queue"] >= 0.05
        assert 0 < spent_ms["first-token"] <= spent_ms["total"]
    assert finished.usage.cached_tokens == 2
    assert finished.timings.prefill_us == 700


async def test_a_missing_seed_is_drawn_reported_and_sent(house: House, ids: list[int]) -> None:
    worker = await house.worker(script=all_at_once(ids)).connect()
    sampled = types_pb2.SamplingParams(temperature=1.0)
    seeds = []
    for _ in range(2):
        finished = await house.stub.GenerateUnary(Request(text=PROMPT, sampling=sampled))
        seeds.append(finished.seed)
    assert [each.sampling.seed for each in worker.submits] == seeds
    assert seeds[0] != seeds[1]
    sampled.seed = 77
    assert (await house.stub.GenerateUnary(Request(text=PROMPT, sampling=sampled))).seed == 77


async def test_a_stop_string_across_tokens_ends_text_and_worker(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    call = house.stub.Generate(Request(text=PROMPT, stop=["worker that", "never"]))
    submit = await worker.submitted()
    for index, token_id in enumerate(ids):
        worker.say(update(submit, index, [token_id]))
    answer = await read(call)
    assert answer.text == ANSWER.partition("worker that")[0]
    assert answer.finished is not None
    assert answer.finished.stop_string == "worker that"
    assert answer.finished.finish_reason == types_pb2.FINISH_REASON_STOP
    assert (await worker.cancelled()).slot == submit.slot


async def test_two_workers_share_the_load(house: House) -> None:
    workers = [await house.worker(worker_id=f"w{number}").connect() for number in range(2)]
    await house.all_take_work()
    calls = [house.stub.Generate(Request(text=PROMPT)) for _ in range(6)]
    await eventually(lambda: sum(len(each.submits) for each in workers) == 6, "all were given away")
    assert [len(each.submits) for each in workers] == [3, 3]
    for call in calls:
        call.cancel()


async def test_a_request_goes_to_the_worker_with_less_to_do(house: House) -> None:
    busy, idle = [house.worker(worker_id=name) for name in ("busy", "idle")]
    busy.load = session_pb2.Load(running=5, waiting=1)
    await busy.connect()
    await idle.connect()
    await house.all_take_work()
    calls = [house.stub.Generate(Request(text=PROMPT)) for _ in range(2)]
    await idle.submitted(2)
    assert not busy.submits
    for call in calls:
        call.cancel()


async def test_a_client_that_goes_away_cancels_its_work(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    call = house.stub.Generate(Request(text=PROMPT))
    submit = await worker.submitted()
    worker.say(update(submit, 0, ids[:2]))
    await call.read()
    call.cancel()
    cancel = await worker.cancelled()
    assert (cancel.slot, cancel.attempt) == (submit.slot, submit.attempt)
    await eventually(lambda: house.metric("headrace_requests_running") == 0, "nothing runs")
    assert house.metric("headrace_requests_total", outcome="cancelled") == 1


async def test_requests_whose_clients_hang_up_after_the_final_event_are_counted_as_ended_well(
    house: House, ids: list[int]
) -> None:
    await house.worker(script=all_at_once(ids)).connect()

    async def ask() -> None:
        call = house.stub.Generate(Request(text=PROMPT))
        while not (await call.read()).HasField("finished"):
            pass
        call.cancel()

    for _ in range(10):
        await asyncio.gather(*(ask() for _ in range(20)))
    await eventually(lambda: house.metric("headrace_requests_running") == 0, "nothing runs")
    assert house.metric("headrace_requests_total", outcome="ok") == 200
    assert house.metric("headrace_requests_total", outcome="cancelled") == 0


async def test_a_client_that_goes_away_while_it_waits_leaves_no_trace(house: House) -> None:
    worker = house.worker(sequences=0)
    await worker.connect()
    call = house.stub.Generate(Request(text=PROMPT))
    await eventually(lambda: worker.demand.requests == 1, "it waits")
    call.cancel()
    await eventually(lambda: worker.demand.requests == 0, "nothing waits")
    assert not worker.submits


async def test_the_flush_policy_of_a_request_merges_tokens(house: House, ids: list[int]) -> None:
    worker = await house.worker().connect()
    flush = router_pb2.FlushPolicy(max_tokens=1000)
    flush.max_delay.FromSeconds(10)
    call = house.stub.Generate(Request(text=PROMPT, flush=flush))
    submit = await worker.submitted()
    for index, token_id in enumerate(ids):
        worker.say(update(submit, index, [token_id], end() if index == len(ids) - 1 else None))
    answer = await read(call)
    assert answer.ids == ids
    assert answer.messages == 3, "the first token, all others, the end"


async def test_logprobs_come_with_their_ids(house: House, ids: list[int]) -> None:
    def script(submit: session_pb2.Submit) -> list[session_pb2.SequenceUpdate]:
        assert submit.sampling.logprobs == 1
        found = [types_pb2.PositionLogprobs(chosen=-float(index)) for index in range(len(ids))]
        return [update(submit, 0, ids, end(), found)]

    await house.worker(script=script).connect()
    sampling = types_pb2.SamplingParams(logprobs=1)
    answer = await read(house.stub.Generate(Request(text=PROMPT, sampling=sampling)))
    assert [each.chosen for each in answer.logprobs] == [-float(index) for index in range(len(ids))]


async def test_a_reader_that_is_slow_is_given_up_alone(tmp_path: Path) -> None:
    bounds = {"unsent_tokens": 1, "stall_s": 1.0}
    async with open_house(tmp_path, context=1 << 30, slow_reader=bounds) as house:
        worker = await house.worker(max_tokens=1 << 30).connect()
        call = house.stub.Generate(Request(text=PROMPT, max_tokens=1 << 29))
        submit = await worker.submitted()
        chunk, sent = house.tokenizer.ids(ANSWER) * 400, 0
        while not worker.cancels:
            worker.say(update(submit, sent, chunk))
            sent += len(chunk)
            await eventually(lambda: worker.idle, "the frame is written")
            assert sent < 1 << 26, "the reader was never given up"
        other = house.stub.Generate(Request(text=PROMPT))
        following = await worker.submitted(2)
        worker.say(update(following, 0, chunk[:3], end()))
        assert (await read(other)).error is None
        answer = await read(call, Answer())
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(answer.error)["ErrorInfo"].reason == "SLOW_CONSUMER"


async def test_a_reader_that_never_reads_holds_no_share_and_no_drain(tmp_path: Path) -> None:
    async with open_house(tmp_path, context=1 << 30, slow_reader={"stall_s": 0.2}) as house:
        worker = await house.worker(max_tokens=1 << 30).connect()
        call = house.stub.Generate(Request(text=PROMPT, max_tokens=1 << 29))
        worker.say(update(await worker.submitted(), 0, house.tokenizer.ids(ANSWER) * (1 << 17), end()))
        await asyncio.wait_for(house.router.drain(), 60)
        assert house.metric("headrace_requests_running") == 0
        answer = await read(call)
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(answer.error)["ErrorInfo"].reason == "SLOW_CONSUMER"


async def test_models_are_listed_and_tokens_counted(house: House) -> None:
    await house.worker(capabilities=("logprobs", "grammar"), max_tokens=512).connect()
    [model] = (await house.stub.ListModels(router_pb2.ListModelsRequest())).models
    assert (model.name, model.workers, model.context_length, model.chat) == ("tiny", 1, 512, True)
    assert list(model.capabilities) == ["grammar", "logprobs"]
    counted = await house.stub.CountTokens(router_pb2.CountTokensRequest(text=PROMPT))
    assert (counted.tokens, counted.model) == (len(house.tokenizer.ids(PROMPT)), "tiny")
