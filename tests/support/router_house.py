"""A whole router in the test's own process, with a real tokenizer service and scripted workers around it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from headrace.v1 import router_pb2, router_pb2_grpc, types_pb2
from prometheus_client import CollectorRegistry

from services.common.errors import DETAILS_KEY
from services.common.lifecycle import NotServing, Serving, Tasks
from services.common.members import MeshSecret
from services.common.metrics import new_registry
from services.common.transport import Tls, channel
from services.router.service import RouterService
from services.router.settings import RouterSettings
from tests.support.scripted_worker import ScriptedWorker
from tests.support.tokenizer_server import TokenizerServer
from tests.support.waiting import TIMEOUT_S, eventually

NUMERICS = b"n" * 32
SECRET = secrets.token_bytes(32)


class House:
    """The router, its neighbours, and a client's stub."""

    def __init__(
        self, router: RouterService, registry: CollectorRegistry, tokenizer: TokenizerServer
    ) -> None:
        self.router = router
        self.registry = registry
        self.tokenizer = tokenizer
        self.mesh = MeshSecret(SECRET)
        self.channel = channel(f"127.0.0.1:{router.port}", Tls())
        self.stub = router_pb2_grpc.RouterServiceStub(self.channel)
        self.workers: list[ScriptedWorker] = []

    @property
    def session_address(self) -> str:
        """Where workers dial."""
        return f"127.0.0.1:{self.router.mesh_port}"

    def worker(self, *, numerics: bytes = NUMERICS, **options: Any) -> ScriptedWorker:
        """A worker of the right model that is not yet connected."""
        digests = types_pb2.ModelDigests()
        digests.CopyFrom(self.tokenizer.digests)
        digests.weights, digests.numerics = b"w" * 32, numerics
        options.setdefault("digests", digests)
        worker = ScriptedWorker(self.session_address, self.mesh, **options)
        self.workers.append(worker)
        return worker

    async def all_take_work(self) -> None:
        """Returns when the router knows the credit of every worker: what is asked now may go to any."""
        sessions = self.router._dispatcher.workers
        await eventually(
            lambda: (
                len(list(sessions)) == len(self.workers)
                and all(session.account.credit.sequences for session in sessions)
            ),
            "all workers take work",
        )

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 when it was never counted."""
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def open_house(
    directory: Path,
    *,
    context: int = 4096,
    tokenizers: Sequence[str] | None = None,
    model: Path | None = None,
    tells_time: bool = False,
    **settings: Any,
) -> AsyncIterator[House]:
    """Runs a router on free ports until the block ends; `model`: a directory that real workers load, too."""
    secret_file = directory / "mesh.secret"
    secret_file.write_text(SECRET.hex())
    tokenizer = await TokenizerServer(
        MeshSecret(SECRET), context=context, directory=model, tells_time=tells_time
    ).start()
    session = {"handshake_s": TIMEOUT_S, **settings.pop("session", {})}
    options = {
        "listen": "127.0.0.1:0",
        "mesh_listen": "127.0.0.1:0",
        "mesh_secret_file": secret_file,
        "tokenizers": tuple(tokenizers) if tokenizers is not None else (tokenizer.address,),
        "tokenizer_wait_s": TIMEOUT_S if tokenizers is None else 0.0,
        "session": session,
        **settings,
    }
    registry, tasks = new_registry(), Tasks()
    router = RouterService(RouterSettings(**options), registry, tasks)
    await router.start()
    await router.health.set(Serving)
    house = House(router, registry, tokenizer)
    try:
        yield house
        assert not tasks.failed.done(), f"a task of the router failed: {tasks.failed.result()!r}"
    finally:
        await router.health.set(NotServing)
        for worker in house.workers:
            await worker.die()
        await house.channel.close()
        await tasks.cancel()
        await router.stop()
        await tokenizer.stop()


class Answer:
    """A stream that was read to its end."""

    def __init__(self) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.logprobs: list[types_pb2.PositionLogprobs] = []
        self.messages = 0
        self.finished: router_pb2.Finished | None = None
        self.error: grpc.aio.AioRpcError | None = None
        self.trailers: dict[str, str | bytes] = {}

    def take(self, reply: router_pb2.GenerateResponse) -> None:
        """Adds one message; fails the test where the order is broken."""
        assert self.finished is None, "nothing follows Finished"
        self.messages += 1
        if reply.HasField("finished"):
            self.finished = reply.finished
            return
        assert reply.delta.index == len(self.ids), "each token once, in order"
        self.ids.extend(reply.delta.token_ids)
        self.text += reply.delta.text
        self.logprobs.extend(reply.delta.logprobs)


async def read(call: Any, answer: Answer | None = None) -> Answer:
    """Reads a stream to its end, an error included."""
    answer = answer or Answer()
    try:
        async for reply in call:
            answer.take(reply)
    except grpc.aio.AioRpcError as error:
        answer.error = error
    finally:
        call.cancel()
    answer.trailers = dict(await call.trailing_metadata() or ())
    return answer


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details of an error, by the name of their type."""
    packed = dict(error.trailing_metadata() or ())[DETAILS_KEY]
    found: dict[str, Any] = {}
    for each in status_pb2.Status.FromString(packed).details:
        name = each.type_url.rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name).FromString(each.value)
    return found


def violated(error: grpc.aio.AioRpcError) -> list[str]:
    """The fields that a BadRequest names."""
    return [each.field for each in details(error)["BadRequest"].field_violations]
