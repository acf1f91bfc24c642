"""Real processes: a worker that is killed, frozen, or behind a network that drops everything.

Streams of every kind run on the victim, begun at different times, so that one harm meets them at three
offsets or more. What they say is what they say when nothing happens.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest_asyncio
from headrace.v1 import admin_pb2, router_pb2, types_pb2

from tests.support.failover_streams import KINDS, SCHEMA, Key, across, differences
from tests.support.mesh import Mesh, Process
from tests.support.router_house import Answer
from tests.support.tcp_relay import Connection, TcpRelay
from tests.support.waiting import eventually, eventually_async

TOKENS = 160
OFFSETS = (1, 7, 30)
"""Output tokens that a stream has when the one before it is begun, or when the harm comes."""


class Victim(NamedTuple):
    """The worker that is to be harmed."""

    process: Process
    connections: list[Connection]
    """Of the router's port with it."""


class Reading:
    """A stream that is being read."""

    def __init__(self, mesh: Mesh, request: router_pb2.GenerateRequest) -> None:
        self.answer = Answer()
        self.at_harm = 0
        self._call: Any = mesh.stub.Generate(request)
        self.task = asyncio.create_task(self._read())

    async def has(self, tokens: int) -> None:
        """Waits until so many tokens are there."""
        await eventually(lambda: len(self.answer.ids) >= tokens or self.task.done(), f"{tokens} tokens", 60)
        assert self.answer.finished is None, "it ended too early to be harmed"

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                self.answer.take(reply)
        finally:
            self._call.cancel()


class Scene:
    """A mesh with a victim behind a relay and a spare worker, and what streams say there undisturbed."""

    def __init__(self, mesh: Mesh, relay: TcpRelay) -> None:
        self.mesh = mesh
        self.relay = relay
        self.expected: dict[Key, Answer] = {}
        self.requests: dict[Key, router_pb2.GenerateRequest] = {}
        self._victim: Victim | None = None

    async def victim(self) -> Victim:
        """A victim that is well; what is open beside it is the spare worker's."""
        if self._victim is None or not self._victim.process.alive:
            others = list(self.relay.connections)
            process = await self.add("victim")
            mine = [each for each in self.relay.connections if each not in others]
            self._victim = Victim(process, mine)
        return self._victim

    async def add(self, role: str) -> Process:
        """Starts a worker and waits until the router has it."""
        process = await self.mesh.add_worker(routers=self.relay.address, labels=f"role={role}")
        await self.attached(process.name)
        return process

    async def attached(self, worker_id: str) -> None:
        """Waits until the router gives work to the worker."""

        async def ready() -> bool:
            metadata = self.mesh.secret.metadata("admin")
            reply = await self.mesh.admin.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)
            states = {each.worker_id: each.state for each in reply.workers}
            return states.get(worker_id) == admin_pb2.WORKER_STATE_READY

        await eventually_async(ready, f"{worker_id} is ready", 60)

    async def prepare(self) -> None:
        """Starts both workers, makes the requests, and hears what they say."""
        await self.add("spare")
        await self.victim()
        for offset in OFFSETS:
            for kind in KINDS:
                self.requests[Key(kind, offset)] = _long(kind, offset)
        await self._hear()
        for offset in OFFSETS:
            stopped = _long("sampled", offset)
            stopped.stop.append(across(self.expected[Key("sampled", offset)].ids, TOKENS // 2))
            self.requests[Key("stops", offset)] = stopped
        await self._hear()

    async def _hear(self) -> None:
        new = [key for key in self.requests if key not in self.expected]
        readings = {key: Reading(self.mesh, self.requests[key]) for key in new}
        await asyncio.gather(*(each.task for each in readings.values()))
        self.expected |= {key: each.answer for key, each in readings.items()}

    async def begun(self) -> dict[Key, Reading]:
        """All streams under way: those that have the most tokens were begun first."""
        readings: dict[Key, Reading] = {}
        for offset, following in zip(reversed(OFFSETS), [*reversed(OFFSETS[:-1]), 0], strict=True):
            batch = {key: Reading(self.mesh, r) for key, r in self.requests.items() if key.offset == offset}
            readings |= batch
            ahead = OFFSETS[0] if not following else offset - following
            await asyncio.gather(*(each.has(ahead) for each in batch.values()))
        for reading in readings.values():
            reading.at_harm = len(reading.answer.ids)
        return readings

    async def exact(self, readings: Mapping[Key, Reading]) -> None:
        """All end, and say what they say when nothing happens; those on the victim were moved."""
        await asyncio.gather(*(each.task for each in readings.values()))
        got = {key: each.answer for key, each in readings.items()}
        assert list(differences(got, self.expected)) == []
        moved = {key for key, each in got.items() if each.finished and each.finished.attempts > 1}
        assert {key.offset for key in moved} == set(OFFSETS), "streams at each offset were harmed"
        assert len({readings[key].at_harm for key in moved}) >= len(OFFSETS)


def _long(kind: str, offset: int) -> router_pb2.GenerateRequest:
    made = KINDS[kind](offset)
    made.preferred_labels["role"] = "victim"
    made.cache_scope = types_pb2.CACHE_SCOPE_NONE
    made.max_tokens = TOKENS
    if kind == "schema":
        made.grammar.json_schema = json.dumps({**SCHEMA, "minItems": 90, "maxItems": 90})
    return made


@pytest_asyncio.fixture(scope="module")
async def scene(tiny_model: Path, tmp_path_factory: Any) -> AsyncIterator[Scene]:
    told = {"scheduling": '{"admission": false}', "session": "{}"}  # a silent worker is lost soon
    directory = tmp_path_factory.mktemp("mesh")
    mesh = Mesh(directory, tiny_model, router=told, worker={"dtype": "float32", "threads": "1"})
    async with TcpRelay(mesh.port("mesh")) as relay:
        told["advertise"] = relay.address  # the only way that workers know
        async with mesh:
            it = Scene(mesh, relay)
            await it.prepare()
            yield it


async def test_a_killed_worker_costs_no_token(scene: Scene) -> None:
    victim = await scene.victim()
    readings = await scene.begun()
    victim.process.send(signal.SIGKILL)
    await scene.exact(readings)


async def test_a_frozen_worker_costs_no_token_and_comes_back(scene: Scene) -> None:
    victim = await scene.victim()
    readings = await scene.begun()
    victim.process.send(signal.SIGSTOP)
    try:
        await scene.exact(readings)
    finally:
        victim.process.send(signal.SIGCONT)
    await scene.attached(victim.process.name)


async def test_a_network_that_drops_everything_costs_no_token_and_heals(scene: Scene) -> None:
    victim = await scene.victim()
    readings = await scene.begun()
    scene.relay.drop(victim.connections)
    try:
        await scene.exact(readings)
    finally:
        scene.relay.heal()
    await scene.attached(victim.process.name)
