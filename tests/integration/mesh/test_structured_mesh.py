"""Structured output through the whole mesh: valid, resumable, and refused with its exact status."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import pytest
from google.rpc import error_details_pb2, status_pb2
from headrace.client import Headrace
from headrace.v1 import admin_pb2, router_pb2, types_pb2

from tests.support.constrained import SCHEMAS
from tests.support.generating import Stream, generate, request
from tests.support.mesh import Mesh

Code = grpc.StatusCode
RECORD = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 9999},
        "tags": SCHEMAS["bounded array of words"],
    },
    "required": ["id", "tags"],
    "additionalProperties": False,
}
LONG = {
    "type": "array",
    "items": {"type": "integer", "minimum": 100, "maximum": 999},
    "minItems": 150,
    "maxItems": 200,
}


def bound(schema: Any, **fields: Any) -> router_pb2.GenerateRequest:
    made = request("water", max_tokens=fields.pop("max_tokens", 400), temperature=1.0, seed=7, **fields)
    made.grammar.json_schema = schema if isinstance(schema, str) else json.dumps(schema)
    return made


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    found = error_details_pb2.BadRequest()
    assert any(detail.Unpack(found) for detail in status.details)
    return [each.field for each in found.field_violations]


async def test_a_schema_holds_for_streams_and_unary_calls(mesh: Mesh) -> None:
    stream = await generate(mesh.stub, bound(RECORD))
    assert stream.finished is not None
    assert stream.finished.finish_reason == types_pb2.FINISH_REASON_STOP
    jsonschema.validate(json.loads(stream.text), RECORD)
    unary = await mesh.stub.GenerateUnary(bound(RECORD))
    assert unary.text == stream.text


async def test_many_schemas_at_once_hold(mesh: Mesh) -> None:
    names = ["invoice", "choice of tools", "expression", "format uuid", "keys that need escapes", "tuple"]
    streams = await asyncio.gather(*(generate(mesh.stub, bound(SCHEMAS[name])) for name in names))
    for name, stream in zip(names, streams, strict=True):
        jsonschema.validate(json.loads(stream.text), SCHEMAS[name])


async def test_the_client_asks_for_schemas_regexes_and_grammars(mesh: Mesh) -> None:
    async with Headrace(mesh.address) as client:
        options = {"temperature": 1.0, "seed": 3, "max_tokens": 300}
        assert json.loads(await client.generate("a", json_schema=SCHEMAS["invoice"], **options).text())
        assert re.fullmatch("[a-c]{4}", await client.generate("a", regex="[a-c]{4}", **options).text())
        assert await client.generate("a", lark='start: "mill" " wheel"', **options).text() == "mill wheel"


async def test_an_answer_under_another_grammar_is_another_answer(mesh: Mesh) -> None:
    greedy = [request("water", max_tokens=20, grammar={"regex": regex}) for regex in ("[a-c]{6}", "[x-z]{6}")]
    first, second = [await generate(mesh.stub, each) for each in greedy]
    assert re.fullmatch("[a-c]{6}", first.text)
    assert re.fullmatch("[x-z]{6}", second.text)


@pytest.mark.parametrize(
    ("grammar", "field"),
    [
        ({"json_schema": "{nope"}, "grammar.json_schema"),
        ({"json_schema": '{"type": "nope"}'}, "grammar.json_schema"),
        ({"json_schema": '{"type": "integer", "minimum": 5, "maximum": 3}'}, "grammar.json_schema"),
        ({"regex": "(a"}, "grammar.regex"),
        ({"regex": "(a{1000}){1000}"}, "grammar.regex"),
        ({"lark": "start: nowhere"}, "grammar.lark"),
    ],
    ids=["no JSON", "no schema", "contradictory", "no regex", "explosive", "no lark"],
)
async def test_a_bad_grammar_is_an_invalid_argument_and_neighbours_stream_on(
    mesh: Mesh, grammar: dict[str, str], field: str
) -> None:
    neighbour = asyncio.ensure_future(generate(mesh.stub, request(ids=[5, 6, 7], max_tokens=60)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await generate(mesh.stub, request("water", max_tokens=20, grammar=grammar))
    assert refused.value.code() is Code.INVALID_ARGUMENT
    assert violations(refused.value) == [field]
    assert (await neighbour).finished is not None


async def test_structured_output_outlives_its_worker(tiny_model: Path, tmp_path: Path) -> None:
    async with Mesh(tmp_path, tiny_model, worker={"dtype": "float32", "threads": "1"}) as mesh:
        await asyncio.gather(mesh.add_worker(), mesh.add_worker())
        wanted = bound(LONG, max_tokens=1900, cache_scope=types_pb2.CACHE_SCOPE_NONE)
        undisturbed = await generate(mesh.stub, wanted)
        replies, stream = mesh.stub.Generate(wanted), Stream()
        while len(stream.token_ids) < 17:
            stream.take(await replies.read())
        metadata = mesh.secret.metadata("admin")
        reply = await mesh.admin.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)
        (busy,) = [worker.worker_id for worker in reply.workers if worker.requests]
        next(process for process in mesh.workers if process.name == busy).send(signal.SIGKILL)
        while stream.finished is None:
            stream.take(await replies.read())
        assert stream.finished.attempts == 2
        assert stream.token_ids == undisturbed.token_ids
        jsonschema.validate(json.loads(stream.text), LONG)
