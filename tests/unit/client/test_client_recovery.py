"""What the client does by itself when a router, or the way to it, is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from headrace import errors as client_errors
from headrace.client import Headrace, build_request
from headrace.recovery import ALIVE_S, WINDOW_S, Ask, Recovery
from headrace.v1 import router_pb2

from services.common import errors
from tests.support.scripted_router import ScriptedRouter, delta, finished, serving, words
from tests.support.waiting import eventually

Events = AsyncIterator[router_pb2.GenerateResponse]
GONE = errors.NotFound("nothing is left", kind="request", name="r", reason="NOTHING_TO_RESUME")


def unavailable(message: str = "Socket closed", reason: str = "", retry_s: float | None = None) -> Any:
    code = grpc.StatusCode.UNAVAILABLE
    return client_errors.Unavailable(message, code=code, reason=reason, retry_s=retry_s)


def cut(*first: router_pb2.GenerateResponse) -> Any:
    async def script(request: Any, context: Any) -> Events:
        for event in first:
            yield event
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return script


def raising(error: errors.HeadraceError) -> Any:
    async def script(request: Any, context: Any) -> Events:
        raise error
        yield

    return script


def saying(*events: router_pb2.GenerateResponse) -> Any:
    async def script(request: Any, context: Any) -> Events:
        for event in events:
            yield event

    return script


async def test_a_request_of_which_nothing_came_is_sent_again_whole_under_its_name() -> None:
    router = ScriptedRouter(cut(), raising(GONE), lambda request, context: words("a", "b"))
    async with serving(router) as address, Headrace(address) as mesh:
        answer = mesh.generate("prompt", timeout_s=20)
        assert await answer.text() == "ab"
    asked, rest, again = router.requests
    assert (rest.resume.request_id, rest.resume.next_index) == (answer.request_id, 0)
    assert again == asked
    assert again.request_id == answer.request_id


async def test_what_asks_for_the_rest_says_what_arrived_and_nothing_else() -> None:
    router = ScriptedRouter(cut(delta(0, "日", "x")), saying(delta(2, "c"), finished(3)))
    async with serving(router) as address, Headrace(address) as mesh:
        answer = mesh.generate("a long prompt", timeout_s=20, temperature=0.5)
        assert await answer.text() == "日xc"
    resume = router_pb2.Resume(request_id=answer.request_id, next_index=2, text_bytes=4)
    assert router.requests[1] == router_pb2.GenerateRequest(resume=resume)


@pytest.mark.parametrize("again", [("a", "b", "c"), ("ab", "c"), ("abc",)])
async def test_where_nothing_is_left_the_whole_is_made_again_and_only_its_rest_seen(again: Any) -> None:
    async def remade(request: Any, context: Any) -> Events:
        index = 0
        for part in again:
            yield delta(index, *part)
            index += len(part)
        yield finished(3)

    router = ScriptedRouter(cut(delta(0, "a", "b")), raising(GONE), remade)
    async with serving(router) as address, Headrace(address) as mesh:
        whole = await mesh.generate("x", timeout_s=20, temperature=1.0).finished()
    assert (whole.text, list(whole.token_ids)) == ("abc", [0, 1, 2])
    assert router.requests[2] == router.requests[0]
    assert router.requests[0].sampling.HasField("seed")


async def test_an_answer_that_becomes_another_when_it_is_made_again_is_lost() -> None:
    other = router_pb2.GenerateResponse(delta=router_pb2.Delta(index=0, text="x", token_ids=[77]))
    router = ScriptedRouter(cut(delta(0, "a")), raising(GONE), saying(other, finished(1)))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises(client_errors.StreamLost) as lost:
            await mesh.generate("x", timeout_s=20).text()
    assert lost.value.reason == "DIVERGED"


async def test_a_router_that_stops_hands_its_streams_on() -> None:
    stops = errors.Unavailable("the router stops", reason="ROUTER_STOPS", retry_s=1.0)

    async def half(request: Any, context: Any) -> Events:
        yield delta(0, "a")
        raise stops

    router = ScriptedRouter(half, saying(delta(1, "b"), finished(2)))
    async with serving(router) as address, Headrace(address) as mesh:
        assert await mesh.generate("x", timeout_s=20).text() == "ab"


async def test_a_whole_answer_that_broke_is_asked_for_by_name() -> None:
    router = ScriptedRouter(cut(), lambda request, context: words("a", "b"))
    async with serving(router) as address, Headrace(address) as mesh:
        assert (await mesh.generate_unary("x", timeout_s=20)).text == "ab"
    asked, rest = router.requests
    assert asked.request_id
    assert rest == router_pb2.GenerateRequest(resume=router_pb2.Resume(request_id=asked.request_id))


async def test_whole_answers_by_a_stream_stay_whole() -> None:
    router = ScriptedRouter(cut(), saying(finished(1, text="a")))
    async with serving(router) as address, Headrace(address) as mesh:
        request = build_request("x")
        request.stream = False
        assert await mesh.answer(request, timeout_s=20).text() == "a"
    assert router.requests[1].HasField("stream")
    assert not router.requests[1].stream


async def test_several_addresses_are_taken_in_turn_and_one_that_is_lost_is_left() -> None:
    routers = [ScriptedRouter(lambda request, context: words("a")) for _ in range(2)]
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serving(each)) for each in routers]
        mesh = await stack.enter_async_context(Headrace(",".join(["unix:/nonexistent/a.sock", *addresses])))
        for _ in range(6):
            assert await mesh.generate("x", timeout_s=20).text() == "a"
    assert min(len(each.requests) for each in routers) >= 2


async def test_the_rest_of_a_stream_comes_from_another_router() -> None:
    one, two = ScriptedRouter(cut(delta(0, "a"))), ScriptedRouter(saying(delta(1, "b"), finished(2)))
    async with serving(one) as first, serving(two) as second, Headrace(f"{first}, {second}") as mesh:
        assert await mesh.generate("x", timeout_s=20).text() == "ab"
    assert (len(one.requests), len(two.requests)) == (1, 1)


async def test_closing_the_client_ends_a_recovery() -> None:
    router = ScriptedRouter(cut(delta(0, "a")))
    async with serving(router) as address:
        mesh = Headrace(address)
        reading = asyncio.create_task(mesh.generate("x").text())
        await eventually(lambda: len(router.requests) > 1, "a resume")
        await mesh.close()
        assert await reading == "a"  # the reader's loop ends, as whenever an answer is given up
        assert router.running == 0


async def test_a_deadline_ends_a_recovery() -> None:
    router = ScriptedRouter(cut(delta(0, "a")))
    async with serving(router) as address, Headrace(address) as mesh:
        with pytest.raises((client_errors.Unavailable, client_errors.DeadlineExceeded)):
            await mesh.generate("x", timeout_s=0.3).text()


def test_recovery_ends_with_the_window() -> None:
    recovery = Recovery(jitter=lambda: 1.0)
    assert recovery.step(unavailable(), 3, now=10.0).ask is Ask.REST
    assert recovery.step(unavailable("refused"), 3, now=10.0 + WINDOW_S / 2).ask is Ask.REST
    with pytest.raises(client_errors.Unavailable, match="Socket closed"):
        recovery.step(unavailable("refused"), 3, now=10.0 + WINDOW_S)


def test_output_begins_the_window_anew() -> None:
    recovery = Recovery()
    recovery.step(unavailable(), 3, now=0.0)
    recovery.arrived()
    assert recovery.step(unavailable(), 4, now=100.0).ask is Ask.REST


def test_a_call_that_waited_long_has_mended_what_broke_before() -> None:
    """One router after the other is replaced, under a request that waits and has no token yet."""
    recovery, now = Recovery(), 0.0
    for _ in range(5):
        recovery.asked(now)
        now += 2 * WINDOW_S
        assert recovery.step(unavailable(), 0, now=now).ask is Ask.REST
    late = client_errors.DeadlineExceeded("it waited", code=grpc.StatusCode.DEADLINE_EXCEEDED)
    recovery.asked(now)
    with pytest.raises(client_errors.DeadlineExceeded):
        recovery.step(late, 0, now=now + 2 * WINDOW_S)


def test_calls_that_break_soon_have_mended_nothing() -> None:
    recovery = Recovery()
    for now in (0.0, ALIVE_S / 2, ALIVE_S):
        recovery.asked(now)
        assert recovery.step(unavailable(), 0, now=now + ALIVE_S / 2).ask is Ask.REST
    recovery.asked(WINDOW_S)
    with pytest.raises(client_errors.Unavailable):
        recovery.step(unavailable(), 0, now=WINDOW_S + ALIVE_S)


def test_that_nothing_is_left_is_believed_however_long_it_was_looked_for() -> None:
    recovery = Recovery()
    recovery.step(unavailable(), 0, now=0.0)
    recovery.asked(1.0)
    assert (
        recovery.step(client_errors.from_status(grpc.StatusCode.NOT_FOUND, "gone", ()), 0, now=30.0).ask
        is Ask.AGAIN
    )


def test_pauses_grow_and_differ() -> None:
    pauses = []
    for part in (0.0, 1.0):
        recovery = Recovery(jitter=lambda part=part: part)  # type: ignore[misc]
        pauses.append([recovery.step(unavailable(), 1, now=0.0).pause_s for _ in range(8)])
    low, high = pauses
    assert all(2 * a == b for a, b in zip(low, high, strict=True))
    assert high == sorted(high)
    assert high[-1] <= 0.5


def test_nobody_at_the_only_address_is_told_at_once_and_others_are_tried_first() -> None:
    nobody = unavailable("failed to connect to all addresses; last error: Connection refused")
    with pytest.raises(client_errors.Unavailable):
        Recovery(1).step(nobody, 0, now=0.0)
    recovery = Recovery(2)
    assert recovery.step(nobody, 0, now=0.0) == (Ask.AGAIN, 0.0, True)
    with pytest.raises(client_errors.Unavailable):
        recovery.step(nobody, 0, now=0.0)


def test_an_address_where_somebody_does_not_answer_is_tried_for_a_while() -> None:
    busy = unavailable("failed to connect to all addresses; attempt timed out before receiving SETTINGS")
    recovery = Recovery(1)
    for now in (0.0, 1.0, WINDOW_S - 1):
        step = recovery.step(busy, 0, now=now)
        assert (step.ask, step.elsewhere) == (Ask.AGAIN, True)
    with pytest.raises(client_errors.Unavailable):
        recovery.step(busy, 0, now=WINDOW_S)


def test_a_name_that_is_still_in_use_by_our_own_lost_call_is_waited_for() -> None:
    conflict = client_errors.Conflict("running", code=grpc.StatusCode.ALREADY_EXISTS, reason="IN_USE")
    gone = client_errors.NotFound("gone", code=grpc.StatusCode.NOT_FOUND, reason="NOTHING_TO_RESUME")
    with pytest.raises(client_errors.Conflict):
        Recovery().step(conflict, 0, now=0.0)
    recovery = Recovery()
    recovery.step(unavailable(), 0, now=0.0)
    assert recovery.step(gone, 0, now=1.0).ask is Ask.AGAIN
    assert recovery.step(conflict, 0, now=1.1).ask is Ask.AGAIN
    with pytest.raises(client_errors.Conflict):
        recovery.step(conflict, 0, now=1.0 + WINDOW_S)


def test_a_router_that_leaves_is_left_for_another_before_anything_was_asked_of_it() -> None:
    step = Recovery().step(unavailable("leaving", "DRAINING", retry_s=1.0), 0, now=0.0)
    assert (step.ask, step.elsewhere) == (Ask.AGAIN, True)


@pytest.mark.parametrize(
    "kind", [client_errors.StreamLost, client_errors.ServerFault, client_errors.Exhausted]
)
def test_the_meshs_own_words_after_tokens_are_final(kind: type[client_errors.HeadraceError]) -> None:
    with pytest.raises(kind):
        Recovery().step(kind("own words", code=grpc.StatusCode.INTERNAL, reason="ENGINE_FAULT"), 5, now=0.0)
