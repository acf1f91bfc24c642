"""Several router processes behind one port: both serve, one dies, its streams go on, it is back, all end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.client import Headrace, build_request
from headrace.v1 import admin_pb2, admin_pb2_grpc, types_pb2

from services.router.processes import MESH_STEP
from tests.support.mesh import Mesh
from tests.support.waiting import eventually, eventually_async

PROCESSES = 2


@pytest_asyncio.fixture(scope="module")
async def mesh(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    directory = tmp_path_factory.mktemp("processes")
    settings = {"processes": str(PROCESSES), "drain_timeout_s": "1"}
    worker = {"engine": "simulated"}
    async with Mesh(directory, tiny_model, router=settings, worker=worker) as running:
        await running.add_worker()
        yield running


def events(mesh: Mesh, name: str) -> list[dict[str, Any]]:
    """Of all processes, which share a log."""
    lines = [json.loads(line) for line in mesh.router(0).log.read_text().splitlines() if line[:1] == "{"]
    return [each for each in lines if each["event"] == name]


def pids(mesh: Mesh) -> list[int]:
    """Of the processes that were started, in the order of their start."""
    return [each["pid"] for each in events(mesh, "router_process")]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def session_address(mesh: Mesh, number: int) -> str:
    return f"127.0.0.1:{mesh.port('mesh') + number * MESH_STEP}"


async def workers_of(mesh: Mesh, number: int) -> int:
    stub = admin_pb2_grpc.AdminServiceStub(mesh.channel(session_address(mesh, number)))
    reply = await stub.ListWorkers(
        admin_pb2.ListWorkersRequest(),
        metadata=mesh.secret.metadata("admin"),
        wait_for_ready=True,
        timeout=60,
    )
    return len(reply.workers)


async def all_attached(mesh: Mesh) -> None:
    async def attached() -> bool:
        return [await workers_of(mesh, number) for number in range(PROCESSES)] == [1] * PROCESSES

    await eventually_async(attached, "the worker is attached to each process", 120)


def asked(seed: int) -> Any:
    request = build_request(
        token_ids=range(3, 30), max_tokens=200, ignore_eos=True, temperature=0.8, seed=seed
    )
    request.cache_scope = types_pb2.CACHE_SCOPE_NONE
    return request


async def test_a_worker_that_was_told_of_one_process_attaches_to_all(mesh: Mesh) -> None:
    await all_attached(mesh)
    assert len(pids(mesh)) == PROCESSES
    wrote = {each["router"] for each in events(mesh, "worker_joined")}
    assert wrote == {session_address(mesh, number) for number in range(PROCESSES)}


async def test_connections_spread_and_each_process_counts_for_itself(mesh: Mesh) -> None:
    clients = [Headrace(mesh.address) for _ in range(24)]
    try:
        await asyncio.gather(*(each.models() for each in clients))
    finally:
        await asyncio.gather(*(each.close() for each in clients))
    served = [
        mesh.metric("headrace_rpc_calls_total", number=number, method="RouterService.ListModels")
        for number in range(PROCESSES)
    ]
    assert sum(served) == 24
    assert min(served) > 0


async def test_streams_of_a_process_that_dies_go_on_at_the_other_and_it_is_started_again(mesh: Mesh) -> None:
    await all_attached(mesh)
    undisturbed = []
    async with Headrace(mesh.address) as client:
        undisturbed = await asyncio.gather(*(client.answer(asked(each)).finished() for each in range(8)))
    clients = [Headrace(mesh.address) for _ in range(8)]
    try:
        answers = [client.answer(asked(seed)) for seed, client in enumerate(clients)]
        begun = await asyncio.gather(*(anext(each) for each in answers))
        victim = pids(mesh)[0]
        os.kill(victim, signal.SIGKILL)
        rest = await asyncio.gather(*(each.finished() for each in answers))
    finally:
        await asyncio.gather(*(each.close() for each in clients))
    ids = [[*first.token_ids, *more.token_ids] for first, more in zip(begun, rest, strict=True)]
    assert ids == [list(each.token_ids) for each in undisturbed]
    await eventually(lambda: len(pids(mesh)) == PROCESSES + 1, "a process in its place")
    await all_attached(mesh)


async def test_each_process_says_how_it_is(mesh: Mesh) -> None:
    for number in range(PROCESSES):
        stub: Any = health_pb2_grpc.HealthStub(mesh.channel(session_address(mesh, number)))

        async def serves(stub: Any = stub) -> bool:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

        await eventually_async(serves, f"process {number} serves")


async def test_all_end_in_good_order_when_asked(mesh: Mesh) -> None:
    running = [pid for pid in pids(mesh) if alive(pid)]
    assert len(running) == PROCESSES
    mesh.router(0).send(signal.SIGTERM)
    assert await mesh.router(0).ended() == 0
    assert not any(alive(pid) for pid in running)
