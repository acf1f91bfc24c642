"""The client's promises about one answer: order, retries, resume, cancellation, errors."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from headrace.client import Delta, Finished, Headrace
from headrace.errors import DeadlineExceeded, Exhausted, InvalidRequest, NotFound, StreamLost, Unavailable
from headrace.request import build_request
from headrace.v1 import router_pb2, types_pb2

from services.common import errors
from tests.support.scripted_router import ScriptedRouter, delta, finished, serving, words
from tests.support.waiting import eventually

Events = AsyncIterator[router_pb2.GenerateResponse]


def say(*texts: str) -> Any:
    return lambda request, context: words(*texts)


def fail(error: errors.HeadraceError, *first: router_pb2.GenerateResponse) -> Any:
    async def script(request: Any, context: Any) -> Events:
        for event in first:
            yield event
        raise error

    return script


GONE = errors.NotFound("nothing is left", kind="request", name="r", reason="NOTHING_TO_RESUME")


def break_connection(*first: router_pb2.GenerateResponse) -> Any:
    """Ends like a transport that broke: a status without a word of the mesh."""

    async def script(request: Any, context: Any) -> Events:
        for event in first:
            yield event
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return script


async def hang(request: Any, context: Any) -> Events:
    yield delta(0, "a")
    await asyncio.Event().wait()


async def test_events_are_typed_and_in_order() -> None:
    router = ScriptedRouter(say("a", "b", "c"))
    async with serving(router) as address, Headrace(address) as mesh:
        events = [event async for event in mesh.generate("x")]
    assert [type(event) for event in events] == [Delta, Delta, Delta, Finished]
    assert [event.index for event in events if isinstance(event, Delta)] == [0, 1, 2]


async def test_text_and_finished_put_the_whole_answer_together() -> None:
    router = ScriptedRouter(say("wa", "ter"))
    async with serving(router) as address, Headrace(address) as mesh:
        assert await mesh.generate("x").text() == "water"
        whole = await mesh.generate("x").finished()
    assert (whole.text, list(whole.token_ids), whole.usage.output_tokens) == ("water", [0, 1], 2)


async def test_options_and_key_reach_the_router() -> None:
    router = ScriptedRouter(say("a"))
    async with serving(router) as address, Headrace(address, api_key="hr_k") as mesh:
        chat: list[Any] = [("system", "short"), {"role": "user", "content": "hi"}]
        options: dict[str, Any] = {"max_tokens": 5, "temperature": 0.5, "seed": 7, "stop": ["\n"]}
        await mesh.generate(messages=chat, latency_class="batch", **options).text()
    sent = router.requests[0]
    assert [(turn.role, turn.content) for turn in sent.chat.messages] == [("system", "short"), ("user", "hi")]
    assert (sent.max_tokens, sent.sampling.seed, list(sent.stop)) == (5, 7, ["\n"])
    assert sent.latency_class == types_pb2.LATENCY_CLASS_BATCH
    assert not sent.sampling.HasField("top_p")
    assert sent.request_id
    assert router.metadata[0]["authorization"] == "Bearer hr_k"


@pytest.mark.parametrize("prompts", [{}, {"prompt": "a", "token_ids": [1]}])
async def test_exactly_one_prompt_is_needed(prompts: Any) -> None:
    async with Headrace("127.0.0.1:1") as mesh:
        with pytest.raises(TypeError, match="exactly one"):
            mesh.generate(**prompts)


async def test_an_option_that_does_not_exist_is_named() -> None:
    async with Headrace("127.0.0.1:1") as mesh:
        with pytest.raises(TypeError, match="max_toekns"):
            mesh.generate("x", max_toekns=3)


@pytest.mark.parametrize(
    "error", [errors.Overloaded("full", retry_s=0.001), errors.Unavailable("none", retry_s=0)]
)
async def test_a_refusal_that_says_when_is_retried_before_the_first_token(error: Any) -> None:
    router = ScriptedRouter(fail(error), fail(error), say("a"))
    async with serving(router) as address, Headrace(address) as mesh:
        answer = mesh.generate("x", timeout_s=20)
        assert await answer.text() == "a"
    assert (answer.retries, answer.resumes, len(router.requests)) == (2, 0, 3)


async def test_who_waits_is_told_why_and_for_how_long() -> None:
    full, waits = errors.Overloaded("full", retry_s=0.001), []
    router = ScriptedRouter(fail(full), say("a"), fail(full), say("b"))
    async with (
        serving(router) as address,
        Headrace(address, on_wait=lambda error, pause_s: waits.append((error.reason, pause_s))) as mesh,
    ):
        await mesh.generate("x").text()
        await mesh.generate_unary("x")
    assert waits == [("OVERLOADED", 0.001)] * 2


async def test_a_refusal_that_does_not_say_when_is_raised() -> None:
    router = ScriptedRouter(fail(errors.QuotaExceeded("used up")))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(Exhausted) as caught:
            await mesh.generate("x").text()
    assert (caught.value.reason, caught.value.retry_s, len(router.requests)) == ("QUOTA_EXCEEDED", None, 1)


@pytest.mark.parametrize("reason", ["DEADLINE_INFEASIBLE", "WOULD_QUEUE"])
async def test_what_was_rather_to_be_refused_than_late_is_not_retried(reason: str) -> None:
    late = fail(errors.Overloaded("late", reason=reason, retry_s=0.001))
    router = ScriptedRouter(late, late, say("a"))
    async with serving(router) as address, Headrace(address) as mesh:
        for call in (mesh.generate("x").text(), mesh.generate_unary("x")):
            with pytest.raises(Exhausted) as caught:
                await call
            assert (caught.value.reason, caught.value.retry_s) == (reason, 0.001)
    assert len(router.requests) == 2


async def test_who_asked_not_to_wait_is_told_every_refusal_at_once() -> None:
    nobody = fail(errors.Unavailable("no worker", reason="NO_WORKER", retry_s=0.001))
    router = ScriptedRouter(nobody, nobody, say("a"))
    async with serving(router) as address, Headrace(address) as mesh:
        for call in (
            mesh.generate("x", do_not_queue=True).text(),
            mesh.generate_unary("x", do_not_queue=True),
        ):
            with pytest.raises(Unavailable) as caught:
                await call
            assert (caught.value.reason, caught.value.retry_s) == ("NO_WORKER", 0.001)
    assert len(router.requests) == 2


async def test_whose_time_runs_out_after_a_refusal_is_told_of_it() -> None:
    async def silent(request: router_pb2.GenerateRequest, context: Any) -> Any:
        await asyncio.Event().wait()
        yield

    router = ScriptedRouter(fail(errors.Unavailable("no worker", reason="NO_WORKER", retry_s=0.001)), silent)
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(DeadlineExceeded, match="no worker") as caught:
            await mesh.generate("x", timeout_s=2).text()
    assert caught.value.reason == "NO_WORKER"


async def test_a_retry_that_the_deadline_forbids_is_not_waited_for() -> None:
    router = ScriptedRouter(fail(errors.Overloaded("full", retry_s=3600)))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(Exhausted) as caught:
            await mesh.generate("x", timeout_s=30).text()
    assert caught.value.retry_s == 3600
    assert len(router.requests) == 1


async def test_wrong_fields_are_named() -> None:
    violation = errors.FieldViolation("sampling.top_p", "must be in (0, 1]")
    router = ScriptedRouter(fail(errors.InvalidArgument(violation)))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(InvalidRequest) as caught:
            await mesh.generate("x", top_p=0.5).text()
    assert [tuple(each) for each in caught.value.violations] == [tuple(violation)]
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_broken_stream_is_taken_up_from_the_next_token() -> None:
    async def rest(request: Any, context: Any) -> Events:
        yield delta(2, "c", "d")
        yield finished(4)

    router = ScriptedRouter(break_connection(delta(0, "a", "b")), rest)
    async with serving(router) as address, Headrace(address) as mesh:
        answer = mesh.generate("x", timeout_s=20)
        assert await answer.text() == "abcd"
    resumed = router.requests[1]
    assert (resumed.resume.request_id, resumed.resume.next_index) == (answer.request_id, 2)
    assert (answer.retries, answer.resumes) == (0, 1)


async def test_tokens_that_come_twice_are_seen_once() -> None:
    async def again(request: Any, context: Any) -> Events:
        yield delta(0, "a")
        yield delta(1, "b")
        yield finished(2)

    router = ScriptedRouter(break_connection(delta(0, "a")), again)
    async with serving(router) as address, Headrace(address) as mesh:
        assert await mesh.generate("x", timeout_s=20).text() == "ab"


async def test_a_gap_is_an_error_and_never_skipped() -> None:
    async def gap(request: Any, context: Any) -> Events:
        yield delta(0, "a")
        yield delta(2, "c")
        yield finished(3)

    router = ScriptedRouter(gap)
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(StreamLost, match="expected token 1, got 2"):
            await mesh.generate("x").text()


async def test_where_no_stream_can_be_resumed_the_break_itself_is_raised() -> None:
    router = ScriptedRouter(break_connection(delta(0, "a")), fail(errors.Unimplemented("no resume")))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(Unavailable, match="Socket closed"):
            await mesh.generate("x", timeout_s=20).text()
    assert len(router.requests) == 2


async def test_a_stream_of_which_nothing_is_left_is_lost_and_the_caller_told_how_far_it_came() -> None:
    lost = break_connection(delta(0, "a", "b"))
    router = ScriptedRouter(lost, fail(GONE), lost, fail(GONE))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(StreamLost, match=r"after 2 tokens.*Socket closed"):
            await mesh.generate("x", timeout_s=20).text()
    assert len(router.requests) == 4


async def test_resuming_is_tried_again_while_no_router_is_there() -> None:
    async def rest(request: Any, context: Any) -> Events:
        yield delta(1, "b")
        yield finished(2)

    router = ScriptedRouter(break_connection(delta(0, "a")), break_connection(), break_connection(), rest)
    async with serving(router) as address, Headrace(address) as mesh:
        answer = mesh.generate("x", timeout_s=20)
        assert await answer.text() == "ab"
    assert answer.resumes == 3


async def test_an_error_of_the_mesh_after_tokens_is_final() -> None:
    router = ScriptedRouter(fail(errors.Aborted("lost"), delta(0, "a")))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(StreamLost, match="lost"):
            await mesh.generate("x").text()
    assert len(router.requests) == 1


async def test_leaving_the_block_cancels_the_call() -> None:
    router = ScriptedRouter(hang)
    async with serving(router) as address, Headrace(address) as mesh:
        async with mesh.generate("x") as answer:
            await anext(answer)
        await eventually(lambda: router.cancelled == 1, "the handler is cancelled")
        assert [event async for event in answer] == []


async def test_an_answer_that_nobody_holds_is_cancelled() -> None:
    router = ScriptedRouter(hang)
    async with serving(router) as address, Headrace(address) as mesh:
        async for _ in mesh.generate("x"):
            break
        gc.collect()
        await eventually(lambda: router.cancelled == 1, "the handler is cancelled")


async def test_closing_the_client_cancels_what_runs() -> None:
    router = ScriptedRouter(hang)
    async with serving(router) as address:
        mesh = Headrace(address)
        answer = mesh.generate("x")
        await anext(answer)
        await mesh.close()
        await eventually(lambda: router.cancelled == 1, "the handler is cancelled")


async def test_cancelling_the_reader_cancels_the_call_and_raises_on() -> None:
    router = ScriptedRouter(hang)
    async with serving(router) as address, Headrace(address) as mesh:
        reader = asyncio.create_task(mesh.generate("x").text())
        await eventually(lambda: router.running == 1, "the call runs")
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await eventually(lambda: router.cancelled == 1, "the handler is cancelled")


async def test_a_cancellation_by_the_mesh_is_no_cancellation_of_the_caller() -> None:
    router = ScriptedRouter(fail(errors.Cancelled("given up")))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(errors_of("Cancelled")):
            await mesh.generate("x").text()


async def test_unary_calls_answer_retry_and_fail_alike() -> None:
    busy = fail(errors.Overloaded("full", retry_s=0.001))
    router = ScriptedRouter(busy, say("a", "b"), fail(errors.NotFound("no model", kind="model", name="m")))
    async with serving(router) as address, Headrace(address) as mesh:
        assert (await mesh.generate_unary("x", timeout_s=20)).text == "ab"
        with pytest.raises(NotFound, match="no model"):
            await mesh.generate_unary("x", model="m")
        assert [model.name for model in await mesh.models()] == ["scripted"]
        assert await mesh.count_tokens("one two three") == 3


async def test_nobody_listening_is_unavailable_at_once() -> None:
    async with Headrace("unix:/nonexistent/headrace.sock") as mesh:
        with pytest.raises(Unavailable):
            await mesh.generate("x", timeout_s=20).text()


def errors_of(name: str) -> type[Exception]:
    from headrace import errors as client_errors

    kind: type[Exception] = getattr(client_errors, name)
    return kind


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("max_tokens", {"prompt": "x", "max_tokens": -1}),
        ("seed", {"prompt": "x", "seed": 2**64}),
        ("prompt", {"prompt": "half a pair: \ud800"}),
        (r"messages\[0\]", {"messages": [("user", "\ud800")]}),
        ("token_ids", {"token_ids": [-1]}),
    ],
)
def test_a_value_that_no_message_holds_is_refused_by_name(name: str, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        build_request(**asked)


def test_where_and_how_a_request_may_run_is_sent() -> None:
    request = build_request("x", preferred_labels={"pool": "b"}, sheddable=False, deterministic=True)
    assert dict(request.preferred_labels) == {"pool": "b"}
    assert (request.HasField("sheddable"), request.sheddable, request.deterministic) == (True, False, True)
    assert not build_request("x").HasField("sheddable")


def test_a_given_zero_is_sent_and_what_is_not_given_is_not() -> None:
    request = build_request("x", temperature=0.0, max_tokens=None, stop=["a"], required_labels={"pool": "b"})
    assert request.sampling.HasField("temperature")
    assert not request.HasField("max_tokens")
    assert (list(request.stop), dict(request.required_labels)) == (["a"], {"pool": "b"})
    assert not build_request("x").HasField("sampling")


@pytest.mark.parametrize(
    ("options", "grammar"),
    [
        ({"json_schema": {"type": "null"}}, types_pb2.Grammar(json_schema='{"type": "null"}')),
        ({"json_schema": "true"}, types_pb2.Grammar(json_schema="true")),
        ({"regex": "a+"}, types_pb2.Grammar(regex="a+")),
        ({"lark": 'start: "a"'}, types_pb2.Grammar(lark='start: "a"')),
    ],
)
def test_a_grammar_is_one_of_three_kinds(options: dict[str, Any], grammar: types_pb2.Grammar) -> None:
    assert build_request("a", **options).grammar == grammar
    assert not build_request("a").HasField("grammar")


def test_two_grammars_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="json_schema, regex"):
        build_request("a", json_schema={}, regex="a")
