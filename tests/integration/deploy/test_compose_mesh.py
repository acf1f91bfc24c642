"""The mesh of docker-compose.yaml as plain processes: it comes up, answers, and goes down in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import redis
from headrace.client import Headrace, HeadraceError

from services.common import transport
from tests.support.compose import CPU, render
from tests.support.compose_processes import ComposeProcesses
from tests.support.reference import compare, greedy
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer
from tests.support.waiting import eventually, eventually_async

PROMPT = list(range(3, 35))
OVERRIDE = """
services:
  worker:
    environment: {HEADRACE_WORKER_DTYPE: float32, HEADRACE_WORKER_KV_BLOCKS: 64, HEADRACE_WORKER_THREADS: 1}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_llama(tmp_path_factory.mktemp("compose-model") / "tiny")
    write_tiny_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
async def mesh(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ComposeProcesses]:
    directory = tmp_path_factory.mktemp("compose")
    (directory / "override.yaml").write_text(OVERRIDE)
    project = render((*CPU, str(directory / "override.yaml")), {"HEADRACE_MODEL": str(model)})
    async with ComposeProcesses(project, directory / "mesh", scale={"worker": 2}) as mesh:
        yield mesh
    assert_stopped_in_order(mesh)


def assert_stopped_in_order(mesh: ComposeProcesses) -> None:
    """The router first, its dependencies after it, and nobody had to be killed."""
    names = [name for name, _ in mesh.ended]
    assert names[0] == "router"
    assert names.count("worker") == 2
    assert names.index("cache") < names.index("valkey")
    assert {name: code for name, code in mesh.ended if code != 0} == {}


def key_of(mesh: ComposeProcesses) -> str:
    return mesh.output("init").split()[-1]


async def test_the_printed_key_opens_the_published_port(mesh: ComposeProcesses, model: Path) -> None:
    async with Headrace(mesh.published("router", 50051), api_key=key_of(mesh)) as client:
        whole = await client.generate_unary(token_ids=PROMPT, max_tokens=24, timeout_s=60)
        found = [event async for event in client.generate(token_ids=PROMPT, max_tokens=24, timeout_s=60)]
    reference = greedy(model, [PROMPT], 24)[0]
    comparison = compare(reference, whole.token_ids)
    assert comparison.equal or comparison.legitimate
    assert [token for event in found[:-1] for token in event.token_ids] == list(whole.token_ids)


async def test_without_the_key_it_stays_shut(mesh: ComposeProcesses) -> None:
    async with Headrace(mesh.published("router", 50051)) as client:
        with pytest.raises(HeadraceError) as caught:
            await client.models(timeout_s=60)
    assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED


async def test_both_replicas_serve_the_model(mesh: ComposeProcesses) -> None:
    async with Headrace(mesh.published("router", 50051), api_key=key_of(mesh)) as client:
        models = await client.models(timeout_s=60)
    assert [each.workers for each in models] == [2]


async def opens(client: Headrace) -> bool:
    try:
        return bool(await client.models(timeout_s=60))
    except HeadraceError:
        return False


async def test_an_operator_makes_keys_and_sees_workers_in_the_routers_container(
    mesh: ComposeProcesses,
) -> None:
    code, key = await mesh.execute("router", "headrace", "keys", "create", "acme")
    assert code == 0, key
    files = ("/run/mesh/authority.pem", "/run/mesh/mesh.pem", "/run/mesh/mesh.key")
    admin = ("--admin-address", "127.0.0.1:50061", "--mesh-tls", *files, "--json")
    code, workers = await mesh.execute("router", "headrace", "workers", *admin)
    assert code == 0, workers
    assert workers.count("worker_id") == 2
    async with Headrace(mesh.published("router", 50051), api_key=key.strip()) as client:
        await eventually_async(lambda: opens(client), "the new key opens")


async def test_internal_ports_speak_with_members_alone(mesh: ComposeProcesses) -> None:
    for service, port in (("tokenizer", 50062), ("cache", 50063), ("worker", 50064), ("router", 50061)):
        address = f"127.0.0.1:{mesh.replicas[service][0].port(port)}"
        async with transport.channel(address, transport.Tls()) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(b"", timeout=60)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, f"{service} took plain text"


async def test_answers_reach_valkey_through_its_password(mesh: ComposeProcesses) -> None:
    password = (mesh.volume("valkey") / "valkey.password").read_text().strip()
    valkey = redis.Redis(port=mesh.replicas["valkey"][0].port(6379), password=password)
    async with Headrace(mesh.published("router", 50051), api_key=key_of(mesh)) as client:
        answer = await client.generate_unary("The water", max_tokens=8, timeout_s=60)
    await eventually(valkey.dbsize, "something is stored")
    stored = [valkey.dump(key) for key in valkey.scan_iter()]
    valkey.close()
    assert not any(answer.text.encode() in value for value in stored if value)
