"""Who may open a session, and what an operator sees of them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from headrace.v1 import admin_pb2, admin_pb2_grpc, router_pb2, session_pb2, session_pb2_grpc, types_pb2

from services.common.members import MeshSecret
from services.common.transport import Tls, channel
from tests.support.router_house import House, open_house
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import eventually

METHOD = "SessionService.Session"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as it:
        yield it


async def refusal(worker: ScriptedWorker) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.connect()
    return caught.value


def digests(house: House, **changed: bytes) -> types_pb2.ModelDigests:
    found = types_pb2.ModelDigests()
    found.CopyFrom(house.tokenizer.digests)
    for name, value in changed.items():
        setattr(found, name, value)
    return found


async def test_welcome_names_the_router_its_siblings_and_times(tmp_path: Path) -> None:
    options = {"advertise": "router-1:50061", "siblings": ("router-2:50061",), "router_id": "r1"}
    async with open_house(tmp_path, **options) as house:
        worker = await house.worker().connect()
        assert worker.welcome is not None
        assert list(worker.welcome.siblings) == ["router-1:50061", "router-2:50061"]
        assert (worker.welcome.router_id, worker.welcome.heartbeat_ms) == ("r1", 200)
        assert (worker.welcome.resume_grace_ms, len(worker.welcome.resume)) == (3000, 0)


async def test_a_stranger_with_another_secret_is_refused_and_counted(house: House) -> None:
    stranger = ScriptedWorker(house.session_address, house.mesh, digests(house))
    house.workers.append(stranger)
    wrong = MeshSecret(secrets.token_bytes(32))
    stranger._mesh = _Liar(house.mesh, wrong)  # type: ignore[assignment]
    error = await refusal(stranger)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert house.metric("headrace_strangers_total", method=METHOD) == 1
    assert not list(house.router._dispatcher.workers)


class _Liar:
    """Checks the router like a member, proves itself with another secret."""

    def __init__(self, right: MeshSecret, wrong: MeshSecret) -> None:
        self.router_proof, self.worker_proof = right.router_proof, wrong.worker_proof


@pytest.mark.parametrize(
    "frame",
    [
        session_pb2.WorkerFrame(number=1),
        session_pb2.WorkerFrame(number=1, hello=session_pb2.Hello(worker_id="w", nonce=b"short")),
        session_pb2.WorkerFrame(number=1, updates=[session_pb2.SequenceUpdate(slot=1, token_ids=[1])]),
    ],
)
async def test_a_call_that_does_not_begin_with_hello_is_a_stranger(
    house: House, frame: session_pb2.WorkerFrame
) -> None:
    async with channel(house.session_address, Tls()) as open_channel:
        call = session_pb2_grpc.SessionServiceStub(open_channel).Session(iter([frame]))
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert house.metric("headrace_strangers_total", method=METHOD) == 1


async def test_who_says_nothing_is_sent_away_after_the_handshake_time(tmp_path: Path) -> None:
    async with (
        open_house(tmp_path, session={"handshake_s": 0.2}) as house,
        channel(house.session_address, Tls()) as open_channel,
    ):
        call = session_pb2_grpc.SessionServiceStub(open_channel).Session()
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_garbage_bytes_are_refused(house: House) -> None:
    async with channel(house.session_address, Tls()) as open_channel:
        raw = open_channel.stream_stream("/headrace.v1.SessionService/Session")
        call = raw(iter([b"\xff\xff\xff\xff garbage"]))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["tokenizer", "template"])
async def test_a_worker_with_another_digest_is_refused_by_name(house: House, name: str) -> None:
    error = await refusal(house.worker(digests=digests(house, **{name: b"other"})))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"the {name} of model 'tiny' differs" in (error.details() or "")


async def test_a_worker_of_an_unknown_model_is_refused(house: House) -> None:
    error = await refusal(house.worker(model="huge"))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "'huge'" in (error.details() or "")


async def test_a_worker_of_another_protocol_is_refused(house: House) -> None:
    error = await refusal(house.worker(protocol_version=9))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_admin_port_is_for_members(house: House) -> None:
    async with channel(house.session_address, Tls()) as open_channel:
        stub = admin_pb2_grpc.AdminServiceStub(open_channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListWorkers(admin_pb2.ListWorkersRequest())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert house.metric("headrace_strangers_total", method="AdminService.ListWorkers") == 1


async def test_the_public_services_are_not_on_the_mesh_port_nor_the_other_way_round(house: House) -> None:
    async with channel(f"127.0.0.1:{house.router.port}", Tls()) as public:
        stub = admin_pb2_grpc.AdminServiceStub(public)
        metadata = house.mesh.metadata("admin")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_operator_sees_workers_and_drains_one(house: House) -> None:
    worker = await house.worker(labels={"region": "eu"}).connect()
    call = house.stub.Generate(router_pb2.GenerateRequest(text="hello"))
    await worker.submitted()
    metadata = house.mesh.metadata("admin")
    async with channel(house.session_address, Tls()) as open_channel:
        stub = admin_pb2_grpc.AdminServiceStub(open_channel)
        [status] = (await stub.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)).workers
        assert (status.worker_id, status.model, status.requests) == ("worker-1", "tiny", 1)
        assert status.state == admin_pb2.WORKER_STATE_READY
        assert dict(status.labels) == {"region": "eu"}
        assert status.credit.sequences == 8
        request = admin_pb2.DrainWorkerRequest(worker_id="worker-1")
        request.grace.FromSeconds(3)
        assert (await stub.DrainWorker(request, metadata=metadata)).running == 1
        await eventually(lambda: worker.drain is not None, "the worker was asked")
        assert worker.drain is not None
        assert worker.drain.grace_ms == 3000
        [status] = (await stub.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)).workers
        assert status.state == admin_pb2.WORKER_STATE_DRAINING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="nobody"), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    call.cancel()


async def test_a_draining_worker_gets_nothing_new(house: House) -> None:
    leaving = await house.worker(worker_id="leaving").connect()
    leaving.say(draining=session_pb2.Draining(remaining_ms=1000))
    await eventually(lambda: any(s.draining for s in house.router._dispatcher.workers), "it is draining")
    other = await house.worker(worker_id="other").connect()
    calls = [house.stub.Generate(router_pb2.GenerateRequest(text="hello")) for _ in range(4)]
    await other.submitted(4)
    assert not leaving.submits
    for call in calls:
        call.cancel()


async def test_frames_of_the_router_are_numbered_and_acknowledge(house: House) -> None:
    worker = await house.worker().connect()
    for _ in range(3):
        worker.say()
    await eventually(lambda: worker.frames[-1].acknowledged_frame >= 5, "they were acknowledged")
    assert [each.number for each in worker.frames] == list(range(1, len(worker.frames) + 1))
