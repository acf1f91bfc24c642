"""A worker dies, falls silent, is cut off or leaves at each offset of 16 tokens, under streams of every kind.

In one process: a real router, real workers with the torch engine on a tiny model in fp32, and a relay
between them that holds each stream at its own offset until all stand there; then comes the harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from headrace.v1 import router_pb2

from tests.support.failover_streams import TOKENS, Key, differences, stopped, streams
from tests.support.router_house import Answer, House, open_house, read
from tests.support.session_relay import Border, SessionRelay
from tests.support.torch_worker import TorchWorker, torch_worker
from tests.support.waiting import eventually

PATIENT_S = 5.0
"""For a worker whose session broke: a busy machine may take long to dial again."""
Requests = Mapping[Key, router_pb2.GenerateRequest]


class Stage:
    """A router, and workers each behind a relay: the spare one gets work only when another is harmed."""

    def __init__(self, house: House, directory: Path, model: Path, stack: AsyncExitStack) -> None:
        self.house = house
        self.relays: dict[str, SessionRelay] = {}
        self._directory = directory
        self._model = model
        self._stack = stack
        self._runs = 0

    async def add(self, name: str, **settings: str) -> TorchWorker:
        """Starts a worker and waits until the router has it."""
        relay = await self._stack.enter_async_context(SessionRelay(self.house.session_address))
        self.relays[name] = relay
        secret_file = self._directory / "mesh.secret"
        worker = await self._stack.enter_async_context(
            torch_worker(self._model, secret_file, relay.address, worker_id=name, **settings)
        )
        await self.attached(name)
        return worker

    async def attached(self, name: str) -> None:
        """Waits until the router has a session of the worker."""
        workers = self.house.router._dispatcher.workers
        await eventually(lambda: workers.get(name) is not None, f"{name} is attached")

    async def only(self, name: str) -> None:
        """Work goes to this worker alone from now on; one that is leaving takes none anyway."""
        workers = self.house.router._dispatcher.workers

        def heard(each: str) -> bool:
            session = workers.get(each)
            return (
                session is None
                or session.draining
                or (session.account.credit.sequences > 0) == (each == name)
            )

        for each, relay in self.relays.items():
            relay.credit = each == name
            await eventually(partial(heard, each), f"credit of {each}")

    async def answers(
        self, requests: Requests, harm: Callable[[dict[str, int]], Awaitable[None]] | None = None
    ) -> dict[Key, Answer]:
        """Runs all at once; `harm` gets the offset of each by its name."""
        self._runs += 1
        names = {key: f"{key.kind}-{key.offset}-{self._runs}" for key in requests}
        for key, name in names.items():
            requests[key].request_id = name
        reading = [asyncio.create_task(read(self.house.stub.Generate(each))) for each in requests.values()]
        if harm is not None:
            await harm({name: key.offset for key, name in names.items()})
        return dict(zip(requests, await asyncio.gather(*reading), strict=True))

    async def harmed(
        self, requests: Requests, name: str, harm: Callable[[SessionRelay], None]
    ) -> dict[Key, Answer]:
        """Runs all at once on one worker, which is harmed when each stands at its offset."""
        relay = self.relays[name]

        async def at_the_border(offsets: dict[str, int]) -> None:
            relay.border = Border(offsets)
            await relay.border.all_reached()
            await eventually(lambda: self.delivered() == offsets, "the router has just what passed")
            self.relays["spare"].credit = True
            harm(relay)

        got = await self.answers(requests, at_the_border)
        relay.border = None
        return got

    def delivered(self) -> dict[str, int]:
        """Output tokens that the router has of each request."""
        flights = self.house.router._dispatcher.flights
        return {flight.order.request_id: len(flight.ids) for flight in flights}


@asynccontextmanager
async def staged(model: Path, directory: Path, **settings: str) -> AsyncIterator[Stage]:
    """A stage with a victim and a spare worker."""
    told = {
        "scheduling": {"admission": False},
        "failover": {"return_s": PATIENT_S},
        "session": {"hung_s": 120.0, "lost_s": 5.0, "resume_grace_s": 60.0},  # the machine may be busy
        "slow_reader": {"stall_s": 120.0},
    }
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(open_house(directory, model=model, **told))
        stage = Stage(house, directory, model, stack)
        await stage.add("victim", **settings)
        await stage.add("spare", **settings)
        await stage.only("victim")
        yield stage


@pytest_asyncio.fixture(scope="module")
async def stage(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tiny_model, tmp_path_factory.mktemp("stage")) as it:
        yield it


@pytest_asyncio.fixture(scope="module")
async def undisturbed(stage: Stage) -> dict[Key, tuple[router_pb2.GenerateRequest, Answer]]:
    """All requests, and what they say when nothing happens."""
    requests = streams()
    said = await stage.answers(requests)
    stops = stopped(said)
    said |= await stage.answers(stops)
    return {key: (request, said[key]) for key, request in (requests | stops).items()}


@pytest.fixture
def requests(undisturbed: Mapping[Key, tuple[router_pb2.GenerateRequest, Answer]]) -> Requests:
    return {key: request for key, (request, _) in undisturbed.items()}


@pytest.fixture
def expected(undisturbed: Mapping[Key, tuple[router_pb2.GenerateRequest, Answer]]) -> Mapping[Key, Answer]:
    return {key: answer for key, (_, answer) in undisturbed.items()}


def test_every_stream_is_longer_than_the_offsets_and_every_stop_string_is_met(
    expected: Mapping[Key, Answer],
) -> None:
    assert len(expected) == 96
    for key, answer in expected.items():
        assert answer.error is None
        assert answer.finished is not None
        assert len(answer.ids) > key.offset
        assert bool(answer.finished.stop_string) == (key.kind == "stops")
        assert len(answer.logprobs) == (len(answer.ids) if key.kind == "logprobs" else 0)


async def test_the_worker_dies(stage: Stage, requests: Requests, expected: Mapping[Key, Answer]) -> None:
    ended = await _survives(stage, requests, expected, "victim", SessionRelay.die)
    assert ended == {(2, "spare")}
    await _recovers(stage)


async def test_the_worker_falls_silent(
    stage: Stage, requests: Requests, expected: Mapping[Key, Answer]
) -> None:
    ended = await _survives(stage, requests, expected, "victim", SessionRelay.silence)
    assert ended == {(2, "spare")}
    await _recovers(stage)


async def test_the_connection_is_cut(
    stage: Stage, requests: Requests, expected: Mapping[Key, Answer]
) -> None:
    ended = await _survives(stage, requests, expected, "victim", SessionRelay.cut)
    assert ended == {(1, "victim")}, "the session was resumed"
    await _recovers(stage)


async def test_the_worker_leaves(stage: Stage, requests: Requests, expected: Mapping[Key, Answer]) -> None:
    leaver = await stage.add("leaver")
    await stage.only("leaver")
    leaving: list[asyncio.Task[None]] = []

    def leave(_: SessionRelay) -> None:
        leaving.append(asyncio.create_task(leaver.drain()))

    assert await _survives(stage, requests, expected, "leaver", leave) == {(2, "spare")}
    await asyncio.gather(*leaving)
    await stage.only("victim")


async def test_in_bf16_nothing_is_lost_and_nothing_doubled(tiny_model: Path, tmp_path: Path) -> None:
    """Another token may follow the harm than without it, never another before it, and never one too many."""
    async with staged(tiny_model, tmp_path, dtype="bfloat16") as stage:
        requests = {key: each for key, each in streams().items() if key.kind != "schema"}
        expected = await stage.answers(requests)
        got = await stage.harmed(requests, "victim", SessionRelay.die)
        for key, answer in got.items():
            assert answer.error is None
            assert len(answer.ids) == TOKENS
            assert answer.ids[: key.offset] == expected[key].ids[: key.offset]


async def _survives(
    stage: Stage,
    requests: Requests,
    expected: Mapping[Key, Answer],
    name: str,
    harm: Callable[[SessionRelay], None],
) -> set[tuple[int, str]]:
    """Every stream says the same when its worker is harmed at its offset. Returns attempts and worker."""
    got = await stage.harmed(requests, name, harm)
    assert list(differences(got, expected)) == []
    return {(each.finished.attempts, each.finished.worker_id) for each in got.values() if each.finished}


async def _recovers(stage: Stage) -> None:
    """The victim is there again, alone."""
    stage.relays["victim"].revive()
    await stage.attached("victim")
    await stage.only("victim")
