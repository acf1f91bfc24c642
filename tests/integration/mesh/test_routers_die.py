"""Streams outlive their routers: killed, stopped or cut off mid-stream, and what strangers learn of that."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from headrace import recovery
from headrace.client import Answer, Headrace, build_request
from headrace.errors import NotFound
from headrace.v1 import admin_pb2, admin_pb2_grpc, router_pb2, router_pb2_grpc, types_pb2

from services.common import identity
from tests.support.mesh import Mesh
from tests.support.router_house import details
from tests.support.waiting import eventually, eventually_async

SCHEMA = '{"type": "array", "items": {"enum": ["mill", "wheel", 7]}, "minItems": 60, "maxItems": 70}'
LONG = 1500
"""Tokens of an answer that has not ended before something else has begun."""
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "seed": 11},
    "penalties": {"temperature": 0.7, "seed": 5, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "logprobs": {"temperature": 0.7, "seed": 6, "logprobs": 3},
    "schema": {"json_schema": SCHEMA, "temperature": 1.0, "seed": 3},
}


class Routers:
    """A mesh with two router processes, and a client that knows both."""

    def __init__(self, mesh: Mesh, keys: dict[str, str]) -> None:
        self.mesh = mesh
        self.keys = keys

    def client(self, tenant: str = "acme") -> Headrace:
        return Headrace(",".join(self.mesh.addresses), api_key=self.keys[tenant])

    @asynccontextmanager
    async def without(self, number: int, how: signal.Signals = signal.SIGKILL) -> AsyncIterator[None]:
        """Ends a router; another is in its place when the block has ended."""
        process = self.mesh.router(number)
        process.send(how)
        try:
            yield
        finally:
            process.send(signal.SIGKILL)
            await process.ended()
            await self.mesh.restart_router(number)


@pytest_asyncio.fixture(scope="module")
async def routers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Routers]:
    directory = tmp_path_factory.mktemp("routers")
    keys = {tenant: identity.create_key(directory / "keys.toml", tenant) for tenant in ("acme", "globex")}
    settings = {"keys_file": str(directory / "keys.toml"), "drain_timeout_s": "0.2"}
    worker = {"dtype": "float32", "threads": "1"}
    async with Mesh(directory, tiny_model, router=settings, worker=worker, routers=2) as mesh:
        await mesh.add_worker()
        yield Routers(mesh, keys)


def asked(**options: Any) -> router_pb2.GenerateRequest:
    options = {"max_tokens": 400, **options}
    if "json_schema" not in options:
        options["ignore_eos"] = True
    request = build_request(token_ids=range(3, 40), **options)
    request.cache_scope = types_pb2.CACHE_SCOPE_NONE
    return request


class Close(float):
    """A log-probability: in other batches it is rounded otherwise in its last bits."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 1e-4

    __hash__ = float.__hash__


def rounded(logprobs: types_pb2.PositionLogprobs) -> list[Any]:
    top = [(each.token_id, Close(each.logprob)) for each in logprobs.top]
    return [Close(logprobs.chosen), *top]


def kept(finished: router_pb2.Finished) -> tuple[Any, ...]:
    """What must not depend on who died."""
    usage = finished.usage
    return (
        finished.text,
        list(finished.token_ids),
        [rounded(each) for each in finished.logprobs],
        (finished.finish_reason, finished.stop_string, finished.seed, finished.latency_class),
        (usage.prompt_tokens, usage.output_tokens),
    )


async def read_upto(answer: Answer, tokens: int) -> list[Any]:
    events = []
    async for event in answer:
        events.append(event)
        if sum(len(each.token_ids) for each in events) >= tokens:
            break
    return events


async def rest(answer: Answer, events: list[Any]) -> router_pb2.Finished:
    """The whole answer, of which some events are here."""
    async for event in answer:
        events.append(event)
    whole = router_pb2.Finished()
    whole.CopyFrom(events[-1])
    whole.text = "".join(each.text for each in events)
    whole.token_ids[:] = [token for each in events for token in each.token_ids]
    del whole.logprobs[:]
    whole.logprobs.extend(each for event in events for each in event.logprobs)
    return whole


def serving_router(routers: Routers, answer: Answer) -> int:
    assert answer.address is not None
    return routers.mesh.addresses.index(answer.address)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
async def test_streams_of_a_router_that_ends_are_what_they_would_have_been(
    routers: Routers, how: signal.Signals
) -> None:
    """Killed, or stopped while they run; the client takes each up on the other router."""
    options = [*KINDS.values(), *({"temperature": 0.8, "seed": number} for number in range(7))]
    async with routers.client() as mesh:
        alone = [mesh.answer(asked(**each)) for each in options]
        undisturbed = await asyncio.gather(*(each.finished() for each in alone))
        answers = [mesh.answer(asked(**each)) for each in options]
        events = await asyncio.gather(*(read_upto(each, 8) for each in answers))
        async with routers.without(0, how):
            ended = await asyncio.gather(*(rest(*each) for each in zip(answers, events, strict=True)))
    for disturbed, expected in zip(ended, undisturbed, strict=True):
        assert kept(disturbed) == kept(expected)
    assert sum(each.resumes > 0 for each in answers) >= len(options) // 2
    assert sum(each.retries for each in answers) == 0


async def test_a_stop_string_counts_where_its_beginning_came_from_another_router(routers: Routers) -> None:
    async with routers.client() as mesh:
        whole = await mesh.answer(asked(**KINDS["sampled"])).finished()
        middle = len(whole.text) // 2
        stops = [whole.text[middle : middle + 6]]
        undisturbed = await mesh.answer(asked(**KINDS["sampled"], stop=stops)).finished()
        assert undisturbed.stop_string == stops[0]
        answer = mesh.answer(asked(**KINDS["sampled"], stop=stops))
        events = await read_upto(answer, max(1, len(undisturbed.token_ids) - 8))
        async with routers.without(serving_router(routers, answer)):
            disturbed = await rest(answer, events)
    assert kept(disturbed) == kept(undisturbed)


async def test_an_answer_that_had_ended_is_delivered_by_another_router(routers: Routers) -> None:
    async with routers.client() as mesh:
        undisturbed = await mesh.answer(asked(max_tokens=12)).finished()
        answer = mesh.answer(asked(max_tokens=12))
        events = await read_upto(answer, 4)
        number = serving_router(routers, answer)
        routers.mesh.router(number).send(signal.SIGSTOP)  # nothing comes from it any more, the worker goes on
        await no_worker_runs(routers, 1 - number)
        async with routers.without(number):
            disturbed = await rest(answer, events)
    assert kept(disturbed) == kept(undisturbed)


async def test_streams_of_a_router_that_freezes_go_on_elsewhere(routers: Routers) -> None:
    """It keeps its connections and takes new ones, and says nothing more. Its worker's credit is not lost."""
    lost = sessions_lost(routers)
    async with routers.client() as mesh:
        requests = [asked(temperature=0.8, seed=number) for number in range(6)]
        undisturbed = await asyncio.gather(*(mesh.answer(each).finished() for each in requests))
        answers = [mesh.answer(asked(temperature=0.8, seed=number)) for number in range(6)]
        events = await asyncio.gather(*(read_upto(each, 8) for each in answers))
        async with routers.without(0, signal.SIGSTOP):
            ended = await asyncio.gather(*(rest(*each) for each in zip(answers, events, strict=True)))
            later = await asyncio.gather(*(mesh.answer(each).finished() for each in again(requests)))
            await eventually(lambda: sessions_lost(routers) > lost, "the worker gives its session up")
    assert [kept(each) for each in ended] == [kept(each) for each in undisturbed]
    assert [kept(each) for each in later] == [kept(each) for each in undisturbed]
    assert sum(each.resumes > 0 for each in answers) >= len(answers) // 2


async def test_a_whole_answer_outlives_its_router(routers: Routers) -> None:
    async with routers.client() as mesh:
        request = asked(temperature=0.5, seed=9, request_id="whole", max_tokens=LONG)
        undisturbed = await mesh.answer_unary(request)
        request.request_id = "whole again"
        asking = asyncio.create_task(mesh.answer_unary(request))
        await a_worker_runs(routers)
        async with routers.without(0), routers.without(1):
            pass
        disturbed = await asking
    assert kept(disturbed) == kept(undisturbed)


async def test_streams_wait_for_the_only_router_to_be_back(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a busy machine takes to start one: workers and client wait for it."""
    monkeypatch.setattr(recovery, "WINDOW_S", 120.0)
    patient = {"session": '{"orphan_hold_s": 120, "lost_s": 60, "hung_s": 60}'}
    worker = {"dtype": "float32", "threads": "1"}
    async with (
        Mesh(tmp_path, tiny_model, router=patient, worker=worker) as mesh,
        Headrace(mesh.address) as client,
    ):
        await mesh.add_worker()
        requests = [asked(temperature=0.8, seed=number) for number in range(4)]
        undisturbed = await asyncio.gather(*(client.answer(each).finished() for each in requests))
        answers = [client.answer(asked(temperature=0.8, seed=number)) for number in range(4)]
        events = await asyncio.gather(*(read_upto(each, 8) for each in answers))
        reading = asyncio.gather(*(rest(*each) for each in zip(answers, events, strict=True)))
        async with Routers(mesh, {}).without(0):
            pass  # killed, and started again at once
        ended = await reading
    assert [kept(each) for each in ended] == [kept(each) for each in undisturbed]


async def test_a_lost_connection_frees_the_gpu_and_its_stream_is_taken_up_all_the_same(
    routers: Routers,
) -> None:
    async with routers.client() as mesh:
        undisturbed = await mesh.answer(asked(**KINDS["sampled"])).finished()
    stub = router_pb2_grpc.RouterServiceStub(routers.mesh.channel(routers.mesh.address))
    metadata = (("authorization", f"Bearer {routers.keys['acme']}"),)
    ids, text = await cut_off(
        stub.Generate(asked(**KINDS["sampled"], request_id="cut"), metadata=metadata), 20
    )
    await no_worker_runs(routers, 0)
    resume = router_pb2.Resume(request_id="cut", next_index=len(ids), text_bytes=len(text.encode()))
    call = stub.Generate(router_pb2.GenerateRequest(resume=resume), metadata=metadata)
    more, rest_of_text = await cut_off(call, 10**6)
    assert (ids + more, text + rest_of_text) == (list(undisturbed.token_ids), undisturbed.text)


async def test_two_calls_for_one_stream_leave_it_to_the_later_one(routers: Routers) -> None:
    stub = router_pb2_grpc.RouterServiceStub(routers.mesh.channel(routers.mesh.address))
    other = router_pb2_grpc.RouterServiceStub(routers.mesh.channel(routers.mesh.addresses[1]))
    metadata = (("authorization", f"Bearer {routers.keys['acme']}"),)
    async with routers.client() as mesh:
        undisturbed = await mesh.answer(asked(**KINDS["sampled"], max_tokens=LONG)).finished()
    first = stub.Generate(asked(**KINDS["sampled"], max_tokens=LONG, request_id="twice"), metadata=metadata)
    replies = aiter(first)
    reply = await anext(replies)
    resume = router_pb2.Resume(request_id="twice", next_index=len(reply.delta.token_ids))
    second = other.Generate(router_pb2.GenerateRequest(resume=resume), metadata=metadata)
    more, _ = await cut_off(second, 10**6)
    assert list(reply.delta.token_ids) + more == list(undisturbed.token_ids)
    with pytest.raises(grpc.aio.AioRpcError) as taken:
        await drained(replies)
    assert details(taken.value)["ErrorInfo"].reason == "TAKEN_OVER"


async def test_a_stranger_learns_nothing_of_a_stream(routers: Routers) -> None:
    async with routers.client() as mine, routers.client("globex") as stranger:
        undisturbed = await mine.answer(asked(seed=4, temperature=0.9)).finished()
        answer = mine.answer(asked(seed=4, temperature=0.9))
        events = await read_upto(answer, 8)
        told = []
        for name in (answer.request_id, "no such request"):
            request = router_pb2.GenerateRequest(resume={"request_id": name, "next_index": 1})
            with pytest.raises(NotFound) as refused:
                await stranger.answer(request).finished()
            told.append((str(refused.value), refused.value.reason, refused.value.code))
        assert told[0] == told[1]
        assert told[0][1] == "NOTHING_TO_RESUME"
        assert kept(await rest(answer, events)) == kept(undisturbed)
        assert answer.resumes == 0


def again(requests: list[router_pb2.GenerateRequest]) -> list[router_pb2.GenerateRequest]:
    """The same under names of their own."""
    for request in requests:
        request.request_id += " again"
    return requests


def sessions_lost(routers: Routers) -> int:
    """How many sessions the worker's log says to have broken."""
    return routers.mesh.workers[0].log.read_text().count("ping timeout")


async def drained(replies: AsyncIterator[Any]) -> None:
    async for _ in replies:
        pass


async def cut_off(call: Any, tokens: int) -> tuple[list[int], str]:
    """What a call delivers until it has so many tokens, or ends; then it is cancelled."""
    ids: list[int] = []
    text = ""
    try:
        async for reply in call:
            ids.extend(reply.delta.token_ids)
            text += reply.delta.text
            if len(ids) >= tokens:
                break
    finally:
        call.cancel()
    return ids, text


async def loads(routers: Routers, number: int) -> list[int]:
    """Sequences in the steps of the workers, as a router knows it."""
    stub = admin_pb2_grpc.AdminServiceStub(routers.mesh.channel(routers.mesh.mesh_address(number)))
    metadata = routers.mesh.secret.metadata("admin")
    reply = await stub.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)
    return [each.load.running + each.load.waiting for each in reply.workers]


async def no_worker_runs(routers: Routers, number: int) -> None:
    async def idle() -> bool:
        found = await loads(routers, number)
        return bool(found) and not any(found)

    await eventually_async(idle, "no worker runs anything")


async def a_worker_runs(routers: Routers) -> None:
    async def busy() -> bool:
        return any(await loads(routers, 0))

    await eventually_async(busy, "a worker runs it")
