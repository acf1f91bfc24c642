"""Bad input ends with its exact status and leaves the mesh healthy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
import pytest
import pytest_asyncio
from google.protobuf import message
from google.rpc import error_details_pb2, status_pb2
from headrace.v1 import (
    admin_pb2,
    cache_pb2,
    cache_pb2_grpc,
    router_pb2,
    session_pb2,
    session_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
    types_pb2,
)

from tests.support.generating import generate, request
from tests.support.mesh import Mesh

Code = grpc.StatusCode
Detail = TypeVar("Detail", bound=message.Message)


@pytest_asyncio.fixture(autouse=True)
async def healthy_after(mesh: Mesh) -> AsyncIterator[None]:
    """After every bad input all processes live and a good request is answered."""
    yield
    assert all(process.alive for process in (*mesh.processes.values(), *mesh.workers))
    stream = await generate(mesh.stub, request(ids=[9, 9, 9], max_tokens=2))
    assert stream.finished is not None


async def refused(mesh: Mesh, wrong: router_pb2.GenerateRequest, **call: Any) -> grpc.aio.AioRpcError:
    """The error, which must be the same for the stream and the unary call."""
    with pytest.raises(grpc.aio.AioRpcError) as streamed:
        await generate(mesh.stub, wrong, **call)
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await mesh.stub.GenerateUnary(wrong, **call)
    assert streamed.value.code() is unary.value.code()
    return streamed.value


async def is_late(mesh: Mesh, wanted: router_pb2.GenerateRequest, **call: Any) -> None:
    """Streamed and unary it ends at its deadline, or is told before that this cannot be met: a close race."""
    for answer in (generate(mesh.stub, wanted, **call), mesh.stub.GenerateUnary(wanted, **call)):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await answer
        assert failed.value.code() in {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}


def details(error: grpc.aio.AioRpcError, kind: type[Detail]) -> Detail:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__} in {status}")


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    found = details(error, error_details_pb2.BadRequest)
    return [each.field for each in found.field_violations]


def with_sampling(**fields: Any) -> router_pb2.GenerateRequest:
    return request("water", sampling=types_pb2.SamplingParams(**fields))


INVALID = {
    "no prompt": (router_pb2.GenerateRequest(), "prompt"),
    "empty text": (request(""), "text"),
    "empty ids": (router_pb2.GenerateRequest(token_ids=types_pb2.TokenIds()), "token_ids.ids"),
    "empty chat": (router_pb2.GenerateRequest(chat=types_pb2.ChatMessages()), "chat.messages"),
    "an id outside the vocabulary": (request(ids=[10**6]), "token_ids.ids[0]"),
    "temperature below 0": (with_sampling(temperature=-1), "sampling.temperature"),
    "temperature not a number": (with_sampling(temperature=float("nan")), "sampling.temperature"),
    "temperature infinite": (with_sampling(temperature=float("inf")), "sampling.temperature"),
    "top_p above 1": (with_sampling(top_p=1.5), "sampling.top_p"),
    "top_p 0": (with_sampling(top_p=0), "sampling.top_p"),
    "min_p above 1": (with_sampling(min_p=1.1), "sampling.min_p"),
    "repetition penalty 0": (with_sampling(repetition_penalty=0), "sampling.repetition_penalty"),
    "21 log-probabilities": (with_sampling(logprobs=21), "sampling.logprobs"),
    "no output": (request("water", max_tokens=0), "max_tokens"),
    "10,000 stop strings": (request("water", stop=["x"] * 10_000), "stop"),
    "an empty stop string": (request("water", stop=[""]), "stop[0]"),
    "a class that does not exist": (request("water", latency_class=77), "latency_class"),
    "the mesh's own class": (request("water", latency_class=4), "latency_class"),
    "a scope that does not exist": (request("water", cache_scope=9), "cache_scope"),
    "a request id with a line break": (request("water", request_id="a\nb"), "request_id"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_field_is_named(mesh: Mesh, name: str) -> None:
    wrong, field = INVALID[name]
    error = await refused(mesh, wrong)
    assert error.code() is Code.INVALID_ARGUMENT
    assert field in violations(error)


async def test_all_invalid_fields_are_named_at_once(mesh: Mesh) -> None:
    wrong = request("water", max_tokens=0, sampling=types_pb2.SamplingParams(top_p=2, temperature=-1))
    error = await refused(mesh, wrong)
    assert {"max_tokens", "sampling.top_p", "sampling.temperature"} <= set(violations(error))


async def test_a_prompt_beyond_the_context_is_invalid(mesh: Mesh) -> None:
    error = await refused(mesh, request(ids=[5] * 200_000))
    assert error.code() is Code.INVALID_ARGUMENT
    assert violations(error) == ["token_ids.ids"]
    error = await refused(mesh, request("water " * 60_000))
    assert error.code() is Code.INVALID_ARGUMENT
    assert violations(error) == ["text"]


async def test_output_beyond_the_context_is_clipped(mesh: Mesh) -> None:
    models = await mesh.stub.ListModels(router_pb2.ListModelsRequest())
    context = models.models[0].context_length
    sampling = types_pb2.SamplingParams(ignore_eos=True)
    stream = await generate(mesh.stub, request(ids=[5] * (context - 3), max_tokens=100, sampling=sampling))
    assert stream.finished is not None
    assert stream.finished.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert len(stream.token_ids) == 3


async def test_an_unknown_model_is_not_found(mesh: Mesh) -> None:
    error = await refused(mesh, request("water", model="gpt-17"))
    assert error.code() is Code.NOT_FOUND
    assert details(error, error_details_pb2.ResourceInfo).resource_name == "gpt-17"


async def test_a_name_that_is_no_models_is_not_found_however_long(mesh: Mesh) -> None:
    error = await refused(mesh, request("water", model="x" * 100_000))
    assert error.code() is Code.NOT_FOUND


async def test_more_faults_than_trailers_hold_are_still_invalid_arguments(mesh: Mesh) -> None:
    messages = [types_pb2.ChatMessage(content="a")] * 20_000
    error = await refused(mesh, router_pb2.GenerateRequest(chat=types_pb2.ChatMessages(messages=messages)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert violations(error)[0] == "chat.messages[0].role"


async def test_the_smallest_temperature_kills_no_worker(mesh: Mesh) -> None:
    stream = await generate(mesh.stub, request("water", max_tokens=4, temperature=1e-38))
    assert stream.finished is not None


@pytest.mark.parametrize("method", ["Generate", "GenerateUnary"])
@pytest.mark.parametrize(
    "bad",
    [b"\xff\xff\xff\xff", b"\x12\x02\xff\xfe", b"\x12\x03\xed\xa0\x80", b"\x0a\xff"],
    ids=["no message", "broken UTF-8", "a lone surrogate", "cut short"],
)
async def test_bytes_that_are_no_request_are_invalid(mesh: Mesh, method: str, bad: bytes) -> None:
    channel = mesh.channel(mesh.address)
    open_call = channel.unary_stream if method == "Generate" else channel.unary_unary
    call = open_call(f"/headrace.v1.RouterService/{method}")(bad)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await (call.read() if method == "Generate" else call)
    assert failed.value.code() is Code.INVALID_ARGUMENT


async def test_40_megabytes_are_refused(mesh: Mesh) -> None:
    error = await refused(mesh, request("x" * (40 << 20)))
    assert error.code() is Code.RESOURCE_EXHAUSTED


async def test_a_request_beyond_the_limit_is_refused(mesh: Mesh) -> None:
    error = await refused(mesh, request("x" * (5 << 20)))
    assert error.code() in {Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED}


async def test_a_deadline_of_a_millisecond_is_exceeded_or_refused(mesh: Mesh) -> None:
    await is_late(mesh, request("water", max_tokens=500), timeout=0.001)


async def test_a_deadline_within_the_stream_ends_it(mesh: Mesh) -> None:
    wanted = request(ids=[5, 5], max_tokens=4000, sampling=types_pb2.SamplingParams(ignore_eos=True))
    wanted.completion_deadline.FromMilliseconds(150)
    await is_late(mesh, wanted)


async def test_a_running_request_id_cannot_be_used_again(mesh: Mesh) -> None:
    wanted = request(ids=[5, 5], max_tokens=4000, request_id="mine")
    wanted.sampling.ignore_eos = True
    running = mesh.stub.Generate(wanted)
    await running.read()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await mesh.stub.GenerateUnary(wanted)
    assert failed.value.code() is Code.ALREADY_EXISTS
    running.cancel()


async def test_a_stranger_is_refused_on_every_internal_port(mesh: Mesh) -> None:
    def stub(kind: Any, name: str) -> Any:
        return kind(mesh.channel(f"127.0.0.1:{mesh.port(name)}"))

    calls = [
        stub(tokenizer_pb2_grpc.TokenizerServiceStub, "tokenizer").Encode(tokenizer_pb2.EncodeRequest()),
        stub(cache_pb2_grpc.CacheServiceStub, "cache").Lookup(cache_pb2.LookupRequest()),
        mesh.admin.ListWorkers(admin_pb2.ListWorkersRequest()),
        mesh.admin.ListWorkers(
            admin_pb2.ListWorkersRequest(), metadata=mesh.secret.metadata("cache")
        ),  # a member's token, but of another service
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert failed.value.code() is Code.UNAUTHENTICATED


async def test_a_stranger_gets_no_session(mesh: Mesh) -> None:
    stub = session_pb2_grpc.SessionServiceStub(mesh.channel(f"127.0.0.1:{mesh.port('mesh')}"))
    call = stub.Session()
    hello = session_pb2.Hello(
        protocol_version=1, worker_id="evil", incarnation=1, nonce=b"n" * 32, model="tiny"
    )
    await call.write(session_pb2.WorkerFrame(number=1, hello=hello))
    challenge = await call.read()
    assert challenge.HasField("challenge")
    await call.write(session_pb2.WorkerFrame(number=2, proof=session_pb2.Proof(mac=b"x" * 32)))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is Code.UNAUTHENTICATED
    assert mesh.metric("headrace_strangers_total") > 0


async def test_a_slow_handshake_is_cut_off(mesh: Mesh) -> None:
    stub = session_pb2_grpc.SessionServiceStub(mesh.channel(f"127.0.0.1:{mesh.port('mesh')}"))
    call = stub.Session()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await asyncio.wait_for(call.read(), timeout=60)
    assert failed.value.code() in {Code.UNAUTHENTICATED, Code.DEADLINE_EXCEEDED}


async def test_public_services_are_not_on_internal_ports_and_the_reverse(mesh: Mesh) -> None:
    inside = mesh.channel(f"127.0.0.1:{mesh.port('mesh')}")
    outside = mesh.channel(mesh.address)
    for channel, method in (
        (inside, "/headrace.v1.RouterService/ListModels"),
        (outside, "/headrace.v1.AdminService/ListWorkers"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary(method)(b"")
        assert failed.value.code() is Code.UNIMPLEMENTED
