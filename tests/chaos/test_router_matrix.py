"""A router is gone at each offset of 16 tokens, under streams of every kind; their clients ask another.

Two real routers in this process, a real worker with the torch engine on a tiny model in fp32 that is attached
to both, and a relay before the first that holds each stream at its own offset until all stand there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest_asyncio
from headrace.v1 import router_pb2

from services.common.members import write_new_secret
from tests.support.failover_streams import Key, differences, stopped, streams
from tests.support.router_house import Answer, House, open_house, read
from tests.support.session_relay import Border, SessionRelay
from tests.support.torch_worker import torch_worker
from tests.support.waiting import eventually

Requests = Mapping[Key, router_pb2.GenerateRequest]


class Client:
    """One stream, which is taken up elsewhere when it breaks."""

    def __init__(self, house: House, request: router_pb2.GenerateRequest) -> None:
        self.answer = Answer()
        self._name = request.request_id
        self._call: Any = house.stub.Generate(request)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for reply in self._call:
            self.answer.take(reply)

    async def loses_its_router(self) -> None:
        """Nothing more comes from there."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._call.cancel()

    async def asks(self, house: House) -> Answer:
        """Has the rest from another router."""
        text_bytes = len(self.answer.text.encode())
        resume = router_pb2.Resume(
            request_id=self._name, next_index=len(self.answer.ids), text_bytes=text_bytes
        )
        call = house.stub.Generate(router_pb2.GenerateRequest(resume=resume))
        return await read(call, self.answer)


class Scene:
    """The router that will be gone, the other one, and the only worker's way to the first."""

    def __init__(self, first: House, second: House, relay: SessionRelay) -> None:
        self.first = first
        self.second = second
        self.relay = relay


@pytest_asyncio.fixture(scope="module")
async def scene(tiny_model: Path, tmp_path_factory: Any) -> AsyncIterator[Scene]:
    directory = tmp_path_factory.mktemp("routers")
    write_new_secret(directory / "master.secret")
    told = {
        "model": tiny_model,
        "master_secret_file": directory / "master.secret",
        "salts_directory": directory / "salts",
        "scheduling": {"admission": False},
        "session": {"orphan_hold_s": 120.0, "lost_s": 60.0, "hung_s": 120.0},  # the machine may be busy
        "slow_reader": {"stall_s": 120.0},
    }
    async with (
        open_house(directory, **told) as first,
        open_house(directory, **told) as second,
        SessionRelay(first.session_address) as one,
        SessionRelay(second.session_address) as other,
        torch_worker(tiny_model, directory / "mesh.secret", one.address, other.address),
    ):
        for house in (first, second):
            workers = house.router._dispatcher.workers
            await eventually(lambda w=workers: any(s.account.credit.sequences for s in w), "it is attached")  # type: ignore[misc]
        yield Scene(first, second, one)


async def answers(house: House, requests: Requests) -> dict[Key, Answer]:
    """What all say when nothing happens."""
    said = await asyncio.gather(*(read(house.stub.Generate(each)) for each in requests.values()))
    assert [each.error for each in said if each.error is not None] == []
    return dict(zip(requests, said, strict=True))


async def test_a_router_is_gone_and_another_goes_on_with_its_streams(scene: Scene) -> None:
    requests = streams()
    expected = await answers(scene.second, requests)
    stops = stopped(expected)
    expected |= await answers(scene.second, stops)
    requests |= stops
    for key, request in requests.items():
        request.request_id = f"{key.kind}-{key.offset}"
    scene.relay.border = Border({each.request_id: key.offset for key, each in requests.items()})
    clients = {key: Client(scene.first, request) for key, request in requests.items()}
    await scene.relay.border.all_reached()
    for key, client in clients.items():
        await eventually(lambda c=client, k=key: len(c.answer.ids) == k.offset, "what passed has come")  # type: ignore[misc]
    scene.relay.die()
    await asyncio.gather(*(each.loses_its_router() for each in clients.values()))
    rests = await asyncio.gather(*(each.asks(scene.second) for each in clients.values()))
    assert list(differences(dict(zip(clients, rests, strict=True)), expected)) == []
