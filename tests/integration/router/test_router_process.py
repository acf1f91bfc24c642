"""The router as a real process: what it refuses to start with, health, and draining."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.v1 import router_pb2

from services.common.transport import Tls, channel
from tests.support.router_house import details, open_house, read
from tests.support.scripted_worker import all_at_once
from tests.support.waiting import eventually

Request = router_pb2.GenerateRequest
IDS = [65, 66, 67]


def run(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    secret = directory / "mesh.secret"
    secret.write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    environment |= {
        "HEADRACE_MESH_SECRET_FILE": str(secret),
        "HEADRACE_ROUTER_LISTEN": "127.0.0.1:0",
        "HEADRACE_ROUTER_MESH_LISTEN": "127.0.0.1:0",
        "HEADRACE_ROUTER_TOKENIZER_WAIT_S": "0",
    }
    environment |= {f"HEADRACE_ROUTER_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "services.router"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"LISTEN": "0.0.0.0:0", "INSECURE": "true"}, ["HEADRACE_ROUTER_LISTEN", "without API keys"]),
        ({"MESH_LISTEN": "0.0.0.0:0"}, ["0.0.0.0:0", "TLS"]),
        ({"MESH_SECRET_FILE": "/nowhere"}, ["HEADRACE_ROUTER_MESH_SECRET_FILE"]),
        ({"MASTER_SECRET_FILE": "/nowhere"}, ["HEADRACE_ROUTER_SALTS_DIRECTORY"]),
        ({"STANDARD": '{"flush_tokens": 0}'}, ["HEADRACE_ROUTER_STANDARD"]),
        ({"LISTEN": "127.0.0.1:99999"}, ["HEADRACE_ROUTER_LISTEN", "'127.0.0.1:99999'", "65535"]),
        ({"MESH_LISTEN": "127.0.0.1:-1"}, ["HEADRACE_ROUTER_MESH_LISTEN", "'127.0.0.1:-1'", "host:port"]),
        ({"TOKENIZERS": "nonsense"}, ["HEADRACE_ROUTER_TOKENIZERS", "'nonsense'", "host:port"]),
        ({"SIBLINGS": "a:1,:::"}, ["HEADRACE_ROUTER_SIBLINGS", "':::'", "host:port"]),
        ({"CACHE": "127.0.0.1:0"}, ["HEADRACE_ROUTER_CACHE", "'127.0.0.1:0'"]),
        ({"SALTS_DIRECTORY": __file__}, ["HEADRACE_ROUTER_SALTS_DIRECTORY", "is no directory"]),
        ({"SALTS_DIRECTORY": f"{__file__}/salts"}, ["HEADRACE_ROUTER_SALTS_DIRECTORY", "is no directory"]),
        ({"ENCODE_TIMEOUT_S": "soon"}, ["HEADRACE_ROUTER_ENCODE_TIMEOUT_S", "'soon'"]),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_2(
    tmp_path: Path, settings: dict[str, str], words: list[str]
) -> None:
    done = run(tmp_path, **settings)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("headrace:")]
    assert len(said) == 1
    assert all(word in said[0] for word in words), said[0]
    assert "Traceback" not in done.stderr


async def test_a_signal_drains_the_process_and_it_exits_0(tmp_path: Path) -> None:
    secret = tmp_path / "mesh.secret"
    secret.write_text(secrets.token_hex(32))
    listen = ("--listen", "127.0.0.1:0", "--mesh-listen", "127.0.0.1:0")
    flags = (*listen, "--mesh-secret-file", str(secret), "--log-format", "json", "--tokenizer-wait-s", "0")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.router",
        *flags,
        "--log-format",
        "json",
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    while b'"serving"' not in (line := await asyncio.wait_for(process.stderr.readline(), 60)):
        assert line, "it ended before it served"
    process.send_signal(signal.SIGTERM)
    rest = await asyncio.wait_for(process.stderr.read(), 60)
    assert await process.wait() == 0
    assert b'"draining"' in rest
    assert b'"stopped"' in rest


async def test_draining_refuses_new_requests_and_lets_running_ones_end(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        worker = await house.worker().connect()
        call = house.stub.Generate(Request(text="x"))
        submit = await worker.submitted()
        drain = asyncio.ensure_future(house.router.drain())
        await eventually(lambda: house.router._reception.draining, "it drains")
        refused = await read(house.stub.Generate(Request(text="x")))
        assert refused.error is not None
        assert refused.error.code() is grpc.StatusCode.UNAVAILABLE
        assert {"RetryInfo"} <= set(details(refused.error))
        assert not drain.done()
        worker.say(*all_at_once(IDS)(submit))
        assert (await read(call)).ids == IDS
        await asyncio.wait_for(drain, 60)


async def test_stopping_ends_what_still_runs_with_a_status(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        worker = await house.worker().connect()
        call = house.stub.Generate(Request(text="x"))
        await worker.submitted()
        reading = asyncio.ensure_future(read(call))
        await house.router.stop()
        answer = await reading
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.UNAVAILABLE
        assert await worker.ended() is grpc.StatusCode.UNAVAILABLE


async def test_both_ports_tell_their_health(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        for port in (house.router.port, house.router.mesh_port):
            async with channel(f"127.0.0.1:{port}", Tls()) as open_channel:
                stub = health_pb2_grpc.HealthStub(open_channel)
                for name in ("", "headrace.v1.RouterService"):
                    reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                    assert reply.status == health_pb2.HealthCheckResponse.SERVING
