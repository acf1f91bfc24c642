"""`headrace up` with the real services and a tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from headrace.client import Delta, Headrace, build_request
from headrace.v1.router_pb2_grpc import RouterServiceStub

from services.common import transport
from tests.support.children import alive
from tests.support.commands import headrace
from tests.support.up import READY, Up, running
from tests.support.waiting import eventually


@pytest_asyncio.fixture(scope="module")
async def up(up_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    """One running mesh for the tests that leave it as it is."""
    async with running(up_model, tmp_path_factory.mktemp("state"), "--no-prompt") as mesh:
        await mesh.until(READY)
        yield mesh


async def test_once_answers_and_leaves_nothing_behind(up_model: Path, tmp_path: Path) -> None:
    async with running(up_model, tmp_path, "--once", "--prompt", "Why?") as mesh:
        assert await mesh.ended() == 0
    assert mesh.out.strip()
    assert set(mesh.pids) == {"router", "worker-0", "tokenizer", "cache", "valkey"}
    assert any(line == "> Why?" for line in mesh.lines)
    assert any(line.startswith("First token ") for line in mesh.lines)
    sockets = {
        Path(line.split("\t")[1].removeprefix("unix:")).parent for line in mesh.lines if "unix:" in line
    }
    assert len(sockets) == 1
    assert not os.path.exists(sockets.pop())  # noqa: ASYNC240


async def test_the_first_prompt_of_a_model_without_a_chat_template_is_continued(
    up_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    await asyncio.to_thread(bare.mkdir)
    for name in ("config.json", "tokenizer.json"):
        await asyncio.to_thread(shutil.copy, up_model / name, bare)
    simulated = {"HEADRACE_WORKER_ENGINE": "simulated"}
    async with running(bare, tmp_path / "state", "--once", env=simulated) as mesh:
        assert await mesh.ended() == 0, mesh.lines
    assert mesh.out.strip()


async def test_once_without_an_answer_ends_with_1(up_model: Path, tmp_path: Path) -> None:
    async with running(up_model, tmp_path, "--once", "--prompt", "Why? " * 20_000) as mesh:
        assert await mesh.ended() == 1
    assert any(line.startswith("The first prompt failed: INVALID_ARGUMENT") for line in mesh.lines)


async def test_the_running_mesh_answers_every_command(up: Up) -> None:
    answer = await headrace("generate", "Why?", "--max-tokens", "5", "--json", "--address", up.address)
    assert '"output_tokens": 5' in answer.out, answer.err
    workers = await headrace("workers", "--state-dir", str(up.state))
    assert workers.out.splitlines()[1].startswith("worker-0\tready\ttiny\ttorch")
    assert (await headrace("health", up.address)).out == "SERVING\n"
    bench = await headrace("bench", "--address", up.address, "-n", "4", "-c", "2", "--output-tokens", "8")
    assert "all\t4\t4\t" in bench.out, bench.err


async def test_the_log_of_a_worker_tells_what_its_engine_computes_with(up: Up) -> None:
    lines = await asyncio.to_thread((up.state / "logs" / "worker-0.log").read_text)
    ready = next(json.loads(line) for line in lines.splitlines() if '"engine_ready"' in line)
    assert ready["dtype"] == "float32"
    assert ready["weights_bytes"] > 0
    assert ready["kv_tokens"] % 64 == 0


async def test_a_second_up_with_the_same_state_says_who_is_there(up: Up, up_model: Path) -> None:
    found = await headrace("up", "--model", str(up_model), "--state-dir", str(up.state))
    assert (found.code, found.out, found.err.count("\n")) == (1, "", 1)
    assert f"(pid {up.process.pid}, {up.address})" in found.err


async def test_a_worker_that_is_killed_comes_back_and_answers(up: Up) -> None:
    worker = up.pids["worker-0"]
    os.kill(worker, signal.SIGKILL)
    assert f"worker-0 (pid {worker}) killed by SIGKILL; starting again in" in await up.until("worker-0 (pid")
    await up.until("worker-0 is back")
    async with Headrace(up.address, timeout_s=60) as mesh:
        assert (await mesh.generate("x", max_tokens=3, ignore_eos=True).finished()).usage.output_tokens == 3


async def test_a_simulated_worker_needs_no_weights_and_its_end_is_told_with_the_reason(
    up_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    await asyncio.to_thread(shutil.copytree, up_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    simulated = {"HEADRACE_WORKER_ENGINE": "simulated", "HEADRACE_WORKER_SIMULATED_DIE_AT_TOKEN": "5"}
    async with running(bare, tmp_path / "state", "--no-prompt", env=simulated) as mesh:
        await mesh.until(READY)
        assert mesh.devices["worker-0"] == "simulated"
        async with Headrace(mesh.address, timeout_s=60) as client:
            answer = client.generate("x", max_tokens=20, ignore_eos=True)
            await anext(answer)
            assert "(engine_died: the engine ended" in await mesh.until("worker-0 (pid")
            await answer.aclose()


async def test_ctrl_c_lets_a_running_answer_end_and_stops_in_order(up_model: Path, tmp_path: Path) -> None:
    async with running(up_model, tmp_path, "--no-prompt") as mesh:
        await mesh.until(READY)
        async with Headrace(mesh.address, timeout_s=60) as client:
            answer = client.generate("x", max_tokens=60, ignore_eos=True)
            first = await anext(answer)
            mesh.process.send_signal(signal.SIGINT)
            await mesh.until("Stopping")
            rest = await answer.finished()
        assert isinstance(first, Delta)
        assert rest.usage.output_tokens == 60
        assert await mesh.ended() == 0
    assert not (tmp_path / "running.json").exists()


async def test_a_second_ctrl_c_does_not_wait(up_model: Path, tmp_path: Path) -> None:
    async with running(up_model, tmp_path, "--no-prompt") as mesh:
        await mesh.until(READY)
        async with transport.channel(mesh.address, transport.Tls()) as channel:  # whom no other router helps
            wanted = build_request("x", max_tokens=1900, ignore_eos=True)
            replies = RouterServiceStub(channel).Generate(wanted)
            assert (await replies.read()).HasField("delta")
            mesh.process.send_signal(signal.SIGINT)
            await mesh.until("Stopping")
            mesh.process.send_signal(signal.SIGINT)
            with pytest.raises(grpc.aio.AioRpcError):
                await until_finished(replies)
        assert await mesh.ended() == 0


async def until_finished(replies: Any) -> None:
    while not (await replies.read()).HasField("finished"):
        pass


async def test_the_mesh_ends_when_up_is_killed(up_model: Path, tmp_path: Path) -> None:
    async with running(up_model, tmp_path, "--no-prompt") as mesh:
        await mesh.until(READY)
        pids = mesh.pids
        mesh.process.kill()
        await mesh.process.wait()
        await eventually(lambda: not any(map(alive, pids.values())), "all have ended")


async def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    found = await headrace("up", "--model", "/nonexistent/model", "--state-dir", str(tmp_path), "--port", "1")
    assert (found.code, found.out, found.err.count("\n")) == (1, "", 1)


async def test_weights_that_cannot_be_loaded_end_the_start_with_the_workers_words(
    up_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    await asyncio.to_thread(broken.mkdir)
    for file in up_model.iterdir():  # noqa: ASYNC240
        content = b"not weights" if file.suffix == ".safetensors" else file.read_bytes()
        (broken / file.name).write_bytes(content)
    async with running(broken, tmp_path / "state") as mesh:
        assert await mesh.ended() == 1
    assert mesh.lines[-1].startswith("headrace: worker-0 cannot start: ended with code 1; headrace: worker: ")


async def test_a_taken_port_is_one_line(up_model: Path, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        arguments = ("--model", str(up_model), "--state-dir", str(tmp_path), "--port", str(port))
        found = await headrace("up", *arguments)
    assert (found.code, found.err.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1:{port}" in found.err
