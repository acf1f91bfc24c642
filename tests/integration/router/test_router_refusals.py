"""Everything that is refused, each with its exact status and details; the router serves on after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from headrace.v1 import router_pb2, session_pb2, tokenizer_pb2, types_pb2

from services.common.identity import create_key
from tests.support.router_house import House, details, open_house, read, violated
from tests.support.scripted_worker import all_at_once
from tests.support.waiting import TIMEOUT_S, eventually, eventually_async

Request = router_pb2.GenerateRequest
Code = grpc.StatusCode
IDS = [65, 66, 67]
DEADLINE_MS = 2000
"""Far more than it takes to reach a worker."""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, context=64) as it:
        await it.worker(script=all_at_once(IDS)).connect()
        yield it


async def refused(house: House, request: Request, **call: Any) -> grpc.aio.AioRpcError:
    """The error of both methods, which must agree; the mesh answers after it."""
    streamed = await read(house.stub.Generate(request, **call))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.stub.GenerateUnary(request, **call)
    assert streamed.error is not None
    assert streamed.error.code() is caught.value.code()
    return streamed.error


async def answers(house: House, **call: Any) -> None:
    assert (await read(house.stub.Generate(Request(text="hello"), **call))).error is None


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(), "prompt"),
        (Request(text=""), "text"),
        (Request(chat={}), "chat.messages"),
        (Request(token_ids={"ids": [1, 512]}), "token_ids.ids[1]"),
        (Request(token_ids={"ids": [7] * 64}), "token_ids.ids"),
        (Request(text="x" * 4000), "text"),
        (Request(text="x", sampling={"temperature": -1}), "sampling.temperature"),
        (Request(text="x", sampling={"temperature": float("nan")}), "sampling.temperature"),
        (Request(text="x", sampling={"top_p": 1.5}), "sampling.top_p"),
        (Request(text="x", max_tokens=0), "max_tokens"),
        (Request(text="x", stop=["s"] * 10_000), "stop"),
        (Request(text="x", latency_class=42), "latency_class"),
        (Request(text="x", latency_class=types_pb2.LATENCY_CLASS_SYSTEM), "latency_class"),
    ],
)
async def test_bad_fields_are_named(house: House, request_: Request, field: str) -> None:
    error = await refused(house, request_)
    assert error.code() is Code.INVALID_ARGUMENT
    assert violated(error) == [field]
    await answers(house)


async def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(house: House) -> None:
    error = await refused(house, Request(text="the wheel " * 100))
    assert error.code() is Code.INVALID_ARGUMENT
    assert violated(error) == ["text"]
    assert "1000 bytes; the context of 64 tokens holds at most 832" in (error.details() or "")
    assert house.tokenizer.encoded == 0


async def test_bytes_that_are_no_message_and_text_that_is_not_utf8(house: House) -> None:
    raw = house.channel.unary_unary("/headrace.v1.RouterService/GenerateUnary")
    for data in (b"\xff\xff\xff garbage", b"\x12\x03\xed\xa0\x80"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(data)
        assert caught.value.code() is Code.INVALID_ARGUMENT
    await answers(house)


async def test_40_megabytes(house: House) -> None:
    error = await refused(house, Request(text="x" * (40 << 20)))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    await answers(house)


async def test_an_unknown_model(house: House) -> None:
    error = await refused(house, Request(text="x", model="huge"))
    assert error.code() is Code.NOT_FOUND
    assert details(error)["ResourceInfo"].resource_name == "huge"


async def test_max_tokens_beyond_the_context_are_clipped(house: House) -> None:
    finished = await house.stub.GenerateUnary(Request(token_ids={"ids": [7] * 60}, max_tokens=1000))
    assert finished.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert house.workers[0].submits[-1].max_tokens == 4


async def test_a_grammar_needs_a_worker_that_can(house: House) -> None:
    error = await refused(house, Request(text="x", grammar={"regex": "a+"}))
    assert error.code() is Code.UNIMPLEMENTED
    assert "'grammar'" in (error.details() or "")


async def test_a_deterministic_request_needs_a_worker_that_is(house: House) -> None:
    error = await refused(house, Request(text="x", deterministic=True))
    assert error.code() is Code.FAILED_PRECONDITION
    assert details(error)["ErrorInfo"].reason == "NOT_DETERMINISTIC"


async def test_where_nothing_is_left_to_resume_it_is_said_so(house: House) -> None:
    error = await refused(house, Request(resume={"request_id": "x"}))
    assert error.code() is Code.NOT_FOUND
    assert details(error)["ErrorInfo"].reason == "NOTHING_TO_RESUME"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (tokenizer_pb2.ENCODE_FAILURE_REASON_INVALID_TEXT, Code.INVALID_ARGUMENT),
        (tokenizer_pb2.ENCODE_FAILURE_REASON_TEMPLATE, Code.INVALID_ARGUMENT),
        (tokenizer_pb2.ENCODE_FAILURE_REASON_TIMEOUT, Code.DEADLINE_EXCEEDED),
        (tokenizer_pb2.ENCODE_FAILURE_REASON_TOO_LONG, Code.INVALID_ARGUMENT),
        (tokenizer_pb2.ENCODE_FAILURE_REASON_OVERLOADED, Code.RESOURCE_EXHAUSTED),
    ],
)
async def test_failures_of_encoding(
    house: House, reason: tokenizer_pb2.EncodeFailureReason, code: grpc.StatusCode
) -> None:
    house.tokenizer.failure = tokenizer_pb2.EncodeFailure(reason=reason, message="so it is")
    error = await refused(house, Request(text="x"))
    assert error.code() is code
    house.tokenizer.failure = None
    await answers(house)


async def test_a_name_that_is_in_use(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        worker = await house.worker().connect()
        call = house.stub.Generate(Request(text="x", request_id="same"))
        await worker.submitted()
        error = await refused(house, Request(text="x", request_id="same"))
        assert error.code() is Code.ALREADY_EXISTS
        call.cancel()


async def test_a_deadline_of_a_millisecond(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        silent = await house.worker().connect()
        answer = await read(house.stub.Generate(Request(text="x"), timeout=0.001))
        assert answer.error is not None
        assert answer.error.code() in (Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)
        await silent.die()
        await house.worker(worker_id="other", script=all_at_once(IDS)).connect()
        await answers(house)


async def test_a_completion_deadline_ends_a_running_request_and_its_work(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        worker = await house.worker().connect()
        request = Request(text="x")
        request.completion_deadline.FromMilliseconds(DEADLINE_MS)
        answer = await read(house.stub.Generate(request))
        assert answer.error is not None
        assert answer.error.code() is Code.DEADLINE_EXCEEDED
        assert worker.submits[0].remaining_ms <= DEADLINE_MS
        await worker.cancelled()


async def test_what_may_not_wait_is_refused_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        for code, reason in ((Code.UNAVAILABLE, "NO_WORKER"), (Code.RESOURCE_EXHAUSTED, "WOULD_QUEUE")):
            error = await refused(house, Request(text="x", do_not_queue=True))
            assert error.code() is code
            assert details(error)["ErrorInfo"].reason == reason
            assert "RetryInfo" in details(error)
            if not house.workers:
                await house.worker(sequences=0).connect()


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        slow = session_pb2.StepModel(a=0.5, b=0.1, upper_quantile=1.0)
        worker = await house.worker().connect()
        worker.say(step_model=slow)
        views = house.router._dispatcher.scheduler.fleet("tiny")
        await eventually(lambda: any(each.step_model for each in views), "it told how slow it is")
        request = Request(token_ids={"ids": [7] * 60})
        request.completion_deadline.FromMilliseconds(3000)
        error = await refused(house, request)
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert details(error)["ErrorInfo"].reason == "DEADLINE_INFEASIBLE"
        assert "RetryInfo" not in details(error), "no idle mesh would meet it either"
        assert not worker.submits
        assert (
            house.metric(
                "headrace_admissions_total", **{"class": "interactive"}, verdict="deadline_infeasible"
            )
            == 2
        )


async def test_patience_with_no_worker_ends_unavailable(tmp_path: Path) -> None:
    async with open_house(tmp_path, interactive={"patience_s": 0.2}, standard={"patience_s": 0.2}) as house:
        await house.worker(labels={"pool": "chat"}).connect()
        error = await refused(house, Request(text="x", required_labels={"pool": "bulk", "region": "eu"}))
        assert error.code() is Code.UNAVAILABLE
        assert details(error)["ErrorInfo"].reason == "NO_WORKER"
        assert "RetryInfo" in details(error)
        assert (error.details() or "").endswith("the label pool=bulk, the label region=eu")


async def test_a_worker_that_comes_in_time_takes_what_waits(tmp_path: Path) -> None:
    async with open_house(tmp_path, interactive={"patience_s": TIMEOUT_S}) as house:
        call = house.stub.Generate(Request(text="x"))
        await eventually(
            lambda: house.metric("headrace_queue_depth", **{"class": "interactive"}) == 1, "it waits"
        )
        await house.worker(script=all_at_once(IDS)).connect()
        assert (await read(call)).ids == IDS


async def test_labels_that_no_worker_has(tmp_path: Path) -> None:
    async with open_house(tmp_path, interactive={"patience_s": 0.2}) as house:
        await house.worker(worker_id="us", labels={"region": "us"}, script=all_at_once(IDS)).connect()
        answer = await read(house.stub.Generate(Request(text="x", required_labels={"region": "eu"})))
        assert answer.error is not None
        assert answer.error.code() is Code.UNAVAILABLE
        eu = await house.worker(worker_id="eu", labels={"region": "eu"}, script=all_at_once(IDS)).connect()
        await house.stub.GenerateUnary(Request(text="x", required_labels={"region": "eu"}))
        assert len(eu.submits) == 1


async def test_without_a_tokenizer_new_requests_are_unavailable_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path, tokenizers=["127.0.0.1:1"]) as house:
        error = await refused(house, Request(text="x"))
        assert error.code() is Code.UNAVAILABLE
        assert details(error)["ErrorInfo"].reason == "NO_TOKENIZER"


async def test_another_tokenizer_takes_over(tmp_path: Path) -> None:
    async with open_house(tmp_path) as helper:
        addresses = ["127.0.0.1:1", helper.tokenizer.address]
        async with open_house(tmp_path, tokenizers=addresses) as house:
            await house.worker(script=all_at_once(IDS)).connect()
            for _ in range(4):
                await answers(house)


async def test_running_streams_go_on_without_a_tokenizer(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        worker = await house.worker().connect()
        call = house.stub.Generate(Request(text="x"))
        submit = await worker.submitted()
        await house.tokenizer.stop()
        worker.say(*all_at_once(IDS)(submit))
        assert (await read(call)).ids == IDS


def bearer(key: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {key}"),)}


async def test_keys_open_the_door_and_nothing_else_does(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    key = create_key(keys, "acme")
    async with open_house(tmp_path, keys_file=keys) as house:
        await house.worker(script=all_at_once(IDS)).connect()
        await answers(house, **bearer(key))
        for call, reason in (
            ({}, "NO_KEY"),
            (bearer(key[:-1] + "0" if key[-1] != "0" else "1"), "WRONG_KEY"),
        ):
            error = await refused(house, Request(text="x"), **call)
            assert error.code() is Code.UNAUTHENTICATED
            assert details(error)["ErrorInfo"].reason == reason
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.stub.ListModels(router_pb2.ListModelsRequest())
        assert caught.value.code() is Code.UNAUTHENTICATED


async def test_a_new_key_is_known_soon_and_losing_all_opens_nothing(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    create_key(keys, "acme")
    async with open_house(tmp_path, keys_file=keys) as house:
        await house.worker(script=all_at_once(IDS)).connect()
        key = create_key(keys, "acme")

        async def works() -> bool:
            return (await read(house.stub.Generate(Request(text="hello"), **bearer(key)))).error is None

        async def works_no_more() -> bool:
            return not await works()

        await eventually_async(works, "the new key is known")
        keys.unlink()
        await eventually_async(works_no_more, "no key is known")
        assert (await refused(house, Request(text="x"))).code() is Code.UNAUTHENTICATED


async def test_a_tenant_is_held_to_its_quotas_and_class(tmp_path: Path) -> None:
    keys, tenants = tmp_path / "keys.toml", tmp_path / "tenants.toml"
    key = create_key(keys, "acme")
    tenants.write_text(
        '[tenants.acme]\nconcurrent_requests = 1\nmax_class = "standard"\nrequests_per_minute = 4\n'
    )
    async with open_house(tmp_path, keys_file=keys, tenants_file=tenants) as house:
        worker = await house.worker().connect()
        running = house.stub.Generate(Request(text="x"), **bearer(key))
        submit = await worker.submitted()
        assert submit.latency_class == types_pb2.LATENCY_CLASS_STANDARD
        error = await refused(house, Request(text="x"), **bearer(key))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert {"QuotaFailure", "RetryInfo"} <= set(details(error))
        worker.say(*all_at_once(IDS)(submit))
        assert (await read(running)).error is None
        for number in range(2, 5):
            call = house.stub.Generate(Request(text="x"), **bearer(key))
            worker.say(*all_at_once(IDS)(await worker.submitted(number)))
            assert (await read(call)).error is None
        error = await refused(house, Request(text="x"), **bearer(key))
        assert error.code() is Code.RESOURCE_EXHAUSTED
        assert "minute" in (error.details() or "")


async def test_counting_tokens_is_held_to_the_same_quotas(tmp_path: Path) -> None:
    keys, tenants = tmp_path / "keys.toml", tmp_path / "tenants.toml"
    often, much, large, busy = [create_key(keys, name) for name in ("often", "much", "large", "busy")]
    tenants.write_text(
        "[tenants.often]\nrequests_per_minute = 2\n[tenants.much]\ntokens_per_minute = 50\n"
        "[tenants.large]\nqueued_bytes = 100\n[tenants.busy]\nconcurrent_requests = 1\n"
    )
    async with open_house(tmp_path, keys_file=keys, tenants_file=tenants) as house:

        async def counts(key: str, text: str = "hello") -> bool:
            call = house.stub.CountTokens(router_pb2.CountTokensRequest(text=text), **bearer(key))
            if await call.code() is Code.OK:
                return True
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED
            assert {"QuotaFailure", "RetryInfo"} <= set(details(caught.value))
            return False

        assert [await counts(often) for _ in range(3)] == [True, True, False]
        assert [await counts(much, "many words " * 200), await counts(much)] == [True, False]
        assert [await counts(large, "x" * 200), await counts(large)] == [False, True]
        assert [await counts(busy), await counts(busy)] == [True, True]
        worker = await house.worker().connect()
        running = house.stub.Generate(Request(text="x"), **bearer(busy))
        await worker.submitted()
        assert not await counts(busy)
        running.cancel()
        await house.router.drain()
