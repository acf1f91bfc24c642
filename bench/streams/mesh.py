"""Routers and workers as processes that can be killed, frozen, asked to leave, and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import grpc
from headrace.v1.admin_pb2 import WORKER_STATE_READY, ListWorkersRequest, WorkerStatus
from headrace.v1.admin_pb2_grpc import AdminServiceStub

from bench.relay.mesh import Site, serving
from bench.relay.processes import LOOPBACK, Child, free_port
from bench.streams.asked import Asked, Mix, undisturbed
from bench.streams.load import stubs
from services.common.members import MeshSecret, write_new_secret
from services.common.transport import Tls, channel

if TYPE_CHECKING:
    from headrace.v1.admin_pb2_grpc import AdminServiceAsyncStub

DRAIN_S = 15.0
"""What workers allow a drain to take, as their setting has it where nobody sets it."""
ATTACH_S = 180.0
"""Longest that a worker may take to start where other things run, too."""
_POLL_S = 0.1
_KEPT_TOKENS = 1 << 20  # of KV, of each worker
_ORACLE = "oracle"


class Door(NamedTuple):
    """A router process: where clients and workers reach it; started again, it has the same addresses."""

    name: str
    child: Child
    public: str
    mesh: str
    metrics: str
    admin: AdminServiceAsyncStub

    @property
    def metrics_url(self) -> str:
        """Of its metrics."""
        return f"http://{self.metrics}/metrics"


@dataclass
class Mill:
    """A worker process, which may be started again under its name."""

    name: str
    child: Child
    metrics: str

    def pids(self) -> list[int]:
        """Of the worker and its engine; none when it has ended."""
        try:
            return [self.child.pid, *self.child.children()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def strike(self, number: signal.Signals) -> None:
        """A signal to the worker and its engine at once, as a container gets it."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class StreamMesh:
    """A mesh on a site. Everything in it ends with the site's children and `close`.

    Args:
        step_s: of the workers' engines.
        slots: sequences that each worker runs at once.
        router: further settings of all routers.
        worker: further settings of all workers.
    """

    def __init__(
        self,
        site: Site,
        *,
        step_s: float,
        slots: int = 256,
        router: dict[str, object] | None = None,
        worker: dict[str, object] | None = None,
    ) -> None:
        self.doors: list[Door] = []
        self.mills: dict[str, Mill] = {}
        self._site = site
        self._step_s = step_s
        self._slots = slots
        self._router = router or {}
        self._worker = worker or {}
        self._secret = MeshSecret.read(site.secret)
        self._channels = AsyncExitStack()
        self._siblings: list[str] = []
        self._incarnations: set[int] = set()  # of all workers that ever joined

    @property
    def addresses(self) -> list[str]:
        """Of all routers, for clients."""
        return [each.public for each in self.doors]

    async def close(self) -> None:
        """Ends what is not a process."""
        await self._channels.aclose()

    async def start_routers(self, count: int) -> None:
        """So many, which are siblings and have their keys in common."""
        self._siblings = [f"{LOOPBACK}:{free_port()}" for _ in range(count)]
        master = self._site.scratch / "master.secret"
        write_new_secret(master)
        keys = {"master_secret_file": master, "salts_directory": self._site.scratch / "salts"}
        self._router = {**keys, **self._router}
        for number, mesh in enumerate(self._siblings):
            public, metrics = (f"{LOOPBACK}:{free_port()}" for _ in range(2))
            child = await self._start_router(f"router-{number}", public, mesh, metrics)
            connection = await self._channels.enter_async_context(channel(mesh, Tls()))
            admin = AdminServiceStub(connection)
            self.doors.append(Door(f"router-{number}", child, public, mesh, metrics, admin))

    async def replace_router(self, number: int) -> None:
        """Starts another process in the place of one that has ended; returns when it has all workers."""
        door = self.doors[number]
        child = await self._start_router(door.name, door.public, door.mesh, door.metrics)
        self.doors[number] = door._replace(child=child)
        end_s = time.monotonic() + ATTACH_S
        while len(await self._ready_on(self.doors[number])) < len(self.mills):
            if not child.running or time.monotonic() > end_s:
                raise child.failed("has not got all workers")
            await asyncio.sleep(_POLL_S)

    async def _ready_on(self, door: Door) -> list[WorkerStatus]:
        try:
            return [each for each in await self.listed(door) if each.state == WORKER_STATE_READY]
        except grpc.aio.AioRpcError:  # its connection is still that to the process before
            return []

    async def _start_router(self, name: str, public: str, mesh: str, metrics: str) -> Child:
        child = self._site.service(
            name, "services.router", None, kind="router", listen=public, mesh_listen=mesh,
            metrics_listen=metrics, siblings=",".join(self._siblings), tokenizers=self._site.tokenizer,
            **{**self._targets(), **self._router},
        )  # fmt: skip
        await serving(child, public)
        return child

    def _targets(self) -> dict[str, object]:
        """Of a device with such steps; nobody is refused by load, since load is what is to be borne."""
        targets = json.dumps({"tpot_s": 3 * self._step_s, "ttft_s": 10.0, "patience_s": 60.0})
        load = json.dumps({"admission": False})
        return {"interactive": targets, "standard": targets, "scheduling": load}

    async def add_worker(self, name: str) -> Mill:
        """Starts a worker, anew where it was there before; returns when all routers have it."""
        mill = self.mills[name] = self._start_worker(name, simulated_calibration=self._calibration())
        await self.attached(mill)
        return mill

    async def add_workers(self, names: Iterable[str]) -> None:
        """`add_worker` for all of them at once."""
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self.add_worker(name))

    async def answers(self, *mixes: Mix) -> list[list[Asked]]:
        """The requests of mixes with their undisturbed answers, by a worker that is gone afterwards."""
        oracle = self._start_worker(_ORACLE)
        try:
            await self.attached(oracle)
            async with stubs(self.addresses[:1]) as (stub,):
                ids = json.loads(self._site.ids.read_text())
                return [await undisturbed(stub, each.draw(ids)) for each in mixes]
        finally:
            await asyncio.to_thread(oracle.child.stop)

    def _start_worker(self, name: str, **settings: object) -> Mill:
        metrics = f"{LOOPBACK}:{free_port()}"
        child = self._site.service(
            name, "services.worker", None, kind="worker", worker_id=name, engine="simulated", device="cpu",
            routers=",".join(each.mesh for each in self.doors), model=self._site.model.path,
            metrics_listen=metrics, max_seqs=self._slots, drain_timeout_s=DRAIN_S,
            **{**settings, **self._worker},
        )  # fmt: skip
        return Mill(name, child, f"http://{metrics}/metrics")

    def _calibration(self) -> object:
        path = self._site.scratch / f"calibration-{self._step_s:g}.toml"
        path.write_text(f"kv_tokens = {_KEPT_TOKENS}\n[step]\nstep_s = {self._step_s}\n")
        return path

    async def attached(self, mill: Mill) -> None:
        """Waits until every router has heard of a worker of this name that it had not before.

        Raises ChildFailed.
        """
        end_s = time.monotonic() + ATTACH_S
        while time.monotonic() < end_s and mill.child.running:
            listed = [each for door in self.doors for each in await self.listed(door)]
            found = [each for each in listed if self._new(each, mill.name)]
            if len(found) == len(self.doors):
                self._incarnations.update(each.incarnation for each in found)
                return
            await asyncio.sleep(_POLL_S)
        raise mill.child.failed("is not attached")

    def _new(self, status: WorkerStatus, name: str) -> bool:
        ready = status.state == WORKER_STATE_READY and status.load.kv_blocks_free > 0
        return status.worker_id == name and ready and status.incarnation not in self._incarnations

    async def listed(self, door: Door) -> list[WorkerStatus]:
        """The workers of a router."""
        reply = await door.admin.ListWorkers(
            ListWorkersRequest(), metadata=self._secret.metadata("admin"), timeout=10.0
        )
        return list(reply.workers)
