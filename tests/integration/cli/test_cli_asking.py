"""generate, chat, models and health against a scripted router, as processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from headrace.client import Headrace
from headrace.v1 import types_pb2
from headrace.v1.admin_pb2 import ListWorkersResponse, WorkerStatus
from headrace.v1.admin_pb2_grpc import AdminServiceServicer, add_AdminServiceServicer_to_server
from headrace.v1.session_pb2 import KvSpec, Load

from services.cli.errors import CliError
from services.cli.patience import Patience
from services.common import errors
from tests.support.commands import Outcome, headrace, start
from tests.support.scripted_router import Events, ScriptedRouter, delta, finished, serving, words
from tests.support.waiting import eventually


def say(*texts: str) -> Any:
    return lambda request, context: words(*texts)


def secret_in(directory: Path) -> Path:
    secret = directory / "mesh.secret"
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o600)
    return secret


async def hang(request: Any, context: Any) -> Events:
    yield delta(0, "begun")
    await asyncio.Event().wait()


async def test_generate_streams_the_answer_to_standard_output() -> None:
    router = ScriptedRouter(say("It ", "carries ", "water."))
    async with serving(router) as address:
        found = await headrace(
            "generate", "Why?", "--address", address, "--max-tokens", "7", "--class", "batch"
        )
    assert (found.code, found.out, found.err) == (0, "It carries water.\n", "")
    assert [turn.content for turn in router.requests[0].chat.messages] == ["Why?"]
    assert router.requests[0].max_tokens == 7


async def test_generate_says_on_standard_error_that_it_waits_how_long_and_why() -> None:
    async def refuse(request: Any, context: Any) -> Events:
        raise errors.QuotaExceeded("100 tokens a minute are used up", retry_s=0.6)
        yield

    router = ScriptedRouter(refuse, say("Now."))
    async with serving(router) as address:
        found = await headrace("generate", "Why?", "--address", address)
    assert (found.code, found.out) == (0, "Now.\n")
    assert found.err == "waiting 0.6 s to ask again (QUOTA_EXCEEDED): 100 tokens a minute are used up\n"


async def test_a_worker_that_is_missing_for_too_long_ends_the_call() -> None:
    async def refuse(request: Any, context: Any) -> Events:
        raise errors.Unavailable("no worker is there", reason="NO_WORKER", retry_s=0.01)
        yield

    router = ScriptedRouter(refuse)
    async with serving(router) as address, Headrace(address, timeout_s=60, on_wait=Patience(0.1)) as mesh:
        with pytest.raises(CliError, match=r"^UNAVAILABLE.*: no worker is there"):
            await mesh.generate("Why?").finished()
        assert len(router.requests) > 1


async def test_generate_reads_a_plain_prompt_from_standard_input_and_prints_json() -> None:
    router = ScriptedRouter(say("a", "b"))
    async with serving(router) as address:
        arguments = ("generate", "-", "--no-chat", "--json", "--address", address, "--api-key", "hr_x")
        found = await headrace(*arguments, stdin="Once upon")
    answer = json.loads(found.out)
    assert (answer["text"], answer["token_ids"], answer["usage"]["output_tokens"]) == ("ab", [0, 1], 2)
    assert router.requests[0].text == "Once upon"
    assert router.metadata[0]["authorization"] == "Bearer hr_x"


async def test_a_refusal_is_one_line_and_code_1() -> None:
    async def refuse(request: Any, context: Any) -> Events:
        raise errors.NotFound("no model 'x' is served", kind="model", name="x")
        yield

    async with serving(ScriptedRouter(refuse)) as address:
        found = await headrace("generate", "Why?", "--model", "x", "--address", address)
    assert (found.code, found.out, found.err) == (1, "", "headrace: NOT_FOUND: no model 'x' is served\n")


async def test_who_needs_a_key_is_told_where_to_give_it() -> None:
    async def refuse(request: Any, context: Any) -> Events:
        raise errors.Unauthenticated("an API key is needed", reason="NO_KEY")
        yield

    async with serving(ScriptedRouter(refuse)) as address:
        found = await headrace("generate", "Why?", "--address", address)
    assert (found.code, found.out) == (1, "")
    (line,) = found.err.splitlines()
    assert "--api-key" in line
    assert "HEADRACE_API_KEY" in line


async def test_an_answer_that_is_cut_short_ends_its_line_and_says_by_what() -> None:
    async with serving(ScriptedRouter(hang)) as address:
        found = await headrace("generate", "Why?", "--address", address, "--timeout", "2")
    assert (found.code, found.out) == (1, "begun\n")
    assert found.err == "headrace: DEADLINE_EXCEEDED: no whole answer within the time of --timeout\n"


async def test_ctrl_c_cancels_the_request_and_exits_with_130() -> None:
    router = ScriptedRouter(hang)
    async with serving(router) as address:
        process = await start("generate", "Why?", "--address", address)
        assert process.stdout is not None
        assert await process.stdout.read(5) == b"begun"
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 130
        await eventually(lambda: router.cancelled == 1, "the request is cancelled")


async def test_chat_keeps_what_was_said_until_reset() -> None:
    router = ScriptedRouter(say("Hi", "!"), say("Fine."), say("New."))
    async with serving(router) as address:
        found = await headrace("chat", "--address", address, stdin="hello\nhow?\n/reset\nagain\n/quit\n")
    assert (found.code, found.out) == (0, "Hi!\nFine.\nNew.\n")
    said = [[turn.content for turn in request.chat.messages] for request in router.requests]
    assert said == [["hello"], ["hello", "Hi!", "how?"], ["again"]]


async def test_a_question_of_a_chat_that_failed_is_not_kept() -> None:
    async def refuse(request: Any, context: Any) -> Events:
        raise errors.NotFound("the model 'x' is not served", kind="model", name="x")
        yield

    router = ScriptedRouter(refuse, say("Now."))
    async with serving(router) as address:
        found = await headrace("chat", "--address", address, stdin="first\nsecond\n")
    assert (found.code, found.out) == (1, "Now.\n")
    told = "the model 'x' is not served; `headrace models` lists those that are"
    assert found.err == f"headrace: NOT_FOUND: {told}\n"
    assert [turn.content for turn in router.requests[-1].chat.messages] == ["second"]


async def test_a_chat_from_a_pipe_that_nobody_answers_ends_with_1() -> None:
    found = await headrace("chat", "--address", "127.0.0.1:1", stdin="hi\n")
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("headrace: nobody answers there: ")


async def test_ctrl_c_stops_the_running_answer_of_a_chat_only() -> None:
    router = ScriptedRouter(hang, say("Yes."))
    async with serving(router) as address:
        process = await start("chat", "--address", address)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"first\n")
        assert await process.stdout.read(5) == b"begun"
        process.send_signal(signal.SIGINT)
        await eventually(lambda: router.cancelled == 1, "the answer is cancelled")
        out, _ = await asyncio.wait_for(process.communicate(b"second\n"), 30)
    assert (process.returncode, out) == (0, b"\nYes.\n")


async def test_models_are_plain_lines_in_a_pipe() -> None:
    async with serving(ScriptedRouter(say("a"))) as address:
        found = await headrace("models", "--address", address)
        listed = await headrace("models", "--json", "--address", address)
    assert found.out.splitlines()[1] == "scripted\t2048\t100\t1\tyes\t"
    assert json.loads(listed.out)[0]["name"] == "scripted"


async def test_nobody_listening_is_one_line(tmp_path: Path) -> None:
    found = await headrace("models", "--address", f"unix:{tmp_path}/none.sock")
    assert found.code == 1
    assert found.err.startswith("headrace: nobody answers there: ")
    assert found.err.count("\n") == 1


async def test_a_wrong_call_is_one_line_and_code_2() -> None:
    no_port = ["models", "--address", "127.0.0.1"]
    for arguments in (["frobnicate"], ["generate"], ["generate", "x", "--max-tokens", "many"], no_port):
        found = await headrace(*arguments)
        assert (found.code, found.out, found.err.count("\n")) == (2, "", 1), arguments


async def test_a_value_that_no_message_holds_is_one_line_that_names_its_flag_and_code_2() -> None:
    for name, value in (
        ("--max-tokens", "-3"),
        ("--max-tokens", "0"),
        ("--seed", "-1"),
        ("--seed", str(2**64)),
    ):
        found = await headrace("generate", "x", name, value, "--address", "127.0.0.1:1")
        assert (found.code, found.out, found.err.count("\n")) == (2, "", 1), found.err
        assert found.err.startswith(f"headrace: Invalid value for '{name}': "), found.err


async def test_standard_input_that_is_no_text_is_refused_as_what_it_is() -> None:
    process = await start("generate", "-", "--address", "127.0.0.1:1")
    _, err = await process.communicate(b"ab\xff\xfe")
    assert process.returncode == 2
    assert err == b"headrace: standard input is not UTF-8: byte 2 and what follows\n"


async def test_an_address_that_is_none_is_refused_with_what_to_write(tmp_path: Path) -> None:
    scheme = await headrace("models", "--address", "http://127.0.0.1:50051")
    assert (scheme.code, scheme.err.count("\n")) == (2, 1)
    assert scheme.err.endswith("; leave the scheme away\n")
    admin = await headrace("workers", "--state-dir", str(tmp_path), "--admin-address", "127.0.0.1:99999")
    assert admin.code == 2
    assert admin.err.startswith("headrace: --admin-address '127.0.0.1:99999': write host:port")


async def workers_told(tmp_path: Path, *workers: WorkerStatus) -> Outcome:
    """What `headrace workers` makes of a router with these."""

    class Admin(AdminServiceServicer):
        async def ListWorkers(self, request: Any, context: Any) -> ListWorkersResponse:
            return ListWorkersResponse(workers=workers)

    server = grpc.aio.server()
    add_AdminServiceServicer_to_server(Admin(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    found = await headrace(
        "workers", "--mesh-secret-file", str(secret_in(tmp_path)), "--admin-address", address
    )
    await server.stop(None)
    return found


async def test_a_router_without_workers_says_so_beside_its_empty_table(tmp_path: Path) -> None:
    found = await workers_told(tmp_path)
    assert (found.code, found.out.count("\n")) == (0, 1)
    assert found.err.startswith("No workers: `python -m services.worker` starts one")


async def test_workers_stand_by_name_and_the_pace_of_a_sick_one_shows(tmp_path: Path) -> None:
    cached = Load(step_us=7_030, kv_blocks_cached=100)
    well = WorkerStatus(worker_id="a", load=cached, kv_spec=KvSpec(blocks=100))
    sick = WorkerStatus(
        worker_id="b", requests=4, load=Load(step_us=144_474, kv_blocks_held=25), kv_spec=KvSpec(blocks=100)
    )
    table = [line.split("\t") for line in (await workers_told(tmp_path, sick, well)).out.splitlines()]
    first, pace, used = (table[0].index(name) for name in ("worker", "last step", "kv used"))
    assert [(row[first], row[pace], row[used]) for row in table[1:]] == [
        ("a", "7.0 ms", "0%"),
        ("b", "144.5 ms", "25%"),
    ]


async def test_the_public_port_is_not_taken_for_that_of_the_mesh(tmp_path: Path) -> None:
    secret = secret_in(tmp_path)
    async with serving(ScriptedRouter(say("a"))) as address:
        found = await headrace("workers", "--mesh-secret-file", str(secret), "--admin-address", address)
    told = f"headrace: {address} is no mesh port of a router: --admin-address takes one\n"
    assert (found.code, found.err) == (1, told)


async def health_server(status: Any) -> AsyncIterator[str]:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", status)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_health_follows_what_the_service_says() -> None:
    async for address in health_server(health_pb2.HealthCheckResponse.SERVING):
        found = await headrace("health", address)
        unknown = await headrace("health", address, "--service", "other")
    assert (found.code, found.out) == (0, "SERVING\n")
    assert (unknown.code, unknown.err.count("\n")) == (1, 1)
    async for address in health_server(health_pb2.HealthCheckResponse.NOT_SERVING):
        found = await headrace("health", address)
        assert (found.code, found.err) == (1, f"headrace: {address}: NOT_SERVING\n")


async def test_health_looks_and_refuses_as_the_other_commands_do() -> None:
    shown = await headrace("health", "--help")
    assert (shown.code, shown.out.splitlines()[0]) == (0, "Usage: headrace health [OPTIONS] {address}")
    for arguments in ((), ("a:1", "--timeout", "soon"), ("a:1", "--nonsense")):
        found = await headrace("health", *arguments)
        assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
        assert found.err.endswith("; `headrace health --help` says what there is\n")


async def test_generate_asks_for_an_answer_under_a_schema_or_a_regex(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}')
    router = ScriptedRouter(say("7"), say("7"))
    async with serving(router) as address:
        await headrace("generate", "How many?", "--address", address, "--json-schema", str(schema))
        await headrace("generate", "How many?", "--address", address, "--regex", "[0-9]+")
    assert router.requests[0].grammar.json_schema == '{"type": "integer"}'
    assert router.requests[1].grammar.regex == "[0-9]+"


async def test_an_answer_that_was_cut_says_so_and_ends_with_3_where_it_was_to_match() -> None:
    async def cut(request: Any, context: Any) -> Events:
        yield delta(0, '{ "name":')
        yield finished(5, finish_reason=types_pb2.FINISH_REASON_LENGTH)

    told = "headrace: cut at 5 tokens (--max-tokens, or the context)\n"
    async with serving(ScriptedRouter(cut)) as address:
        plain = await headrace("generate", "Who?", "--address", address)
        as_json = await headrace("generate", "Who?", "--address", address, "--json")
        matched = await headrace("generate", "Who?", "--address", address, "--regex", "[a-z]+")
    assert (plain.code, plain.out, plain.err) == (0, '{ "name":\n', told)
    assert (as_json.code, as_json.err) == (0, told)
    assert matched.code == 3
    assert matched.err == told + "headrace: an answer that was cut need not match the schema or the regex\n"


async def test_two_grammars_or_a_missing_schema_are_refused_in_a_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.json")
    for arguments in (("--json-schema", missing), ("--json-schema", missing, "--regex", "a")):
        found = await headrace("generate", "How many?", *arguments)
        assert (found.code != 0, found.out, len(found.err.splitlines())) == (True, "", 1)
        assert "--json-schema" in found.err


async def test_generate_says_how_the_request_is_to_be_handled() -> None:
    router = ScriptedRouter(say("a"), say("b"))
    handling = ("--deadline", "2.5", "--no-queue", "--no-sheddable", "--deterministic", "--no-cache")
    labels = ("--label", "region=eu", "--label", "disk=", "--prefer", "hardware=h200")
    async with serving(router) as address:
        found = await headrace("generate", "Why?", "--address", address, *handling, *labels)
        plain = await headrace("generate", "Why?", "--address", address)
    assert (found.code, plain.code) == (0, 0), found.err + plain.err
    asked, unsaid = router.requests
    assert asked.completion_deadline.ToMilliseconds() == 2500
    assert (asked.do_not_queue, asked.sheddable, asked.deterministic) == (True, False, True)
    assert asked.HasField("sheddable")
    assert asked.cache_scope == types_pb2.CACHE_SCOPE_NONE
    assert dict(asked.required_labels) == {"region": "eu", "disk": ""}
    assert dict(asked.preferred_labels) == {"hardware": "h200"}
    handled = {"completion_deadline", "do_not_queue", "sheddable", "deterministic", "required_labels"}
    assert not (handled | {"cache_scope"}) & {field.name for field, _ in unsaid.ListFields()}


async def test_labels_and_deadlines_that_are_none_are_refused_in_a_line() -> None:
    for wrong, named in (
        (("--label", "region"), "--label: 'region' is not KEY=VALUE"),
        (("--prefer", "=eu"), "--prefer: '=eu' is not KEY=VALUE"),
        (("--label", "a=1", "--label", "a=2"), "--label: a has two values, '1' and '2'"),
        (("--deadline", "0"), "--deadline"),
        (("--deadline", "inf"), "--deadline"),
    ):
        found = await headrace("generate", "Why?", "--address", "127.0.0.1:9", *wrong)
        assert found.code == 2
        assert named in found.err
