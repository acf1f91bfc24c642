"""Our whole mesh as `headrace up` starts it, asked over gRPC with streamed replies."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop
from headrace.client import channel
from headrace.v1 import router_pb2, router_pb2_grpc, types_pb2

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve

START_S = 120.0
REQUEST_S = 300.0


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """A mesh with one worker on the cores that this process may use; nothing is cached between requests."""
    port = _free_port()
    mesh = subprocess.Popen(_command(config, port), env=_environment(config), stdin=subprocess.DEVNULL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            address = f"127.0.0.1:{port}"
            runner.run(_ready(address, mesh))
            yield lambda job: runner.run(_run(address, job))
    finally:
        mesh.terminate()
        try:
            mesh.wait(timeout=30)
        except subprocess.TimeoutExpired:
            mesh.kill()
            mesh.wait()


def _command(config: Config, port: int) -> list[str]:
    state = str(Path(config.scratch, "state"))
    command = [sys.executable, "-m", "services.cli", "up", "--model", config.model, "--port", str(port)]
    return [*command, "--workers", "1", "--no-prompt", "--state-dir", state]


def _environment(config: Config) -> dict[str, str]:
    return os.environ | {"HEADRACE_WORKER_DTYPE": config.dtype, "CUDA_VISIBLE_DEVICES": ""}


async def _ready(address: str, mesh: subprocess.Popen[bytes]) -> None:
    """Returns when a worker serves the model."""
    end_s = time.monotonic() + START_S
    async with channel(address, None) as connection:
        stub = router_pb2_grpc.RouterServiceStub(connection)
        while time.monotonic() < end_s:
            if mesh.poll() is not None:
                raise RuntimeError(f"headrace up ended with exit code {mesh.returncode}")
            if await _workers(stub):
                return
            await asyncio.sleep(0.2)
    raise TimeoutError(f"the mesh is not ready after {START_S:g} s")


async def _workers(stub: Any) -> int:
    try:
        found = await stub.ListModels(router_pb2.ListModelsRequest(), timeout=2)
    except grpc.aio.AioRpcError:
        return 0
    return sum(model.workers for model in found.models)


async def _run(address: str, job: Job) -> list[Answer]:
    turn = asyncio.Semaphore(job.streams)
    async with channel(address, None) as connection:
        stub = router_pb2_grpc.RouterServiceStub(connection)
        return await asyncio.gather(*(_ask(stub, prompt, job.output_tokens, turn) for prompt in job.prompts))


async def _ask(stub: Any, prompt: list[int], output_tokens: int, turn: asyncio.Semaphore) -> Answer:
    async with turn:
        answer = Answer()
        call = stub.Generate(_request(prompt, output_tokens), timeout=REQUEST_S)
        try:
            async for response in call:
                answer.arrived(response.delta.token_ids)
        finally:
            call.cancel()
        return answer


def _request(prompt: list[int], output_tokens: int) -> router_pb2.GenerateRequest:
    return router_pb2.GenerateRequest(
        token_ids=types_pb2.TokenIds(ids=prompt),
        max_tokens=output_tokens,
        sampling=types_pb2.SamplingParams(temperature=0.0, ignore_eos=True),
        cache_scope=types_pb2.CACHE_SCOPE_NONE,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve(start, ("headrace", "grpcio", "torch"))
