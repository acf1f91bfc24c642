"""Our services as children: a tokenizer service, routers, real workers with a simulated engine."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from headrace.v1.admin_pb2 import ListWorkersRequest
from headrace.v1.admin_pb2_grpc import AdminServiceStub
from tokenizers import Tokenizer

from bench.relay.processes import LOOPBACK, START_S, Child, cores, free_port, module
from services.cli.up.ready import grpc_serving
from services.common.members import MeshSecret, write_new_secret
from services.common.models import ModelDirectory
from services.common.transport import Tls, channel

if TYPE_CHECKING:
    from headrace.v1.admin_pb2_grpc import AdminServiceAsyncStub

PROSE = (
    "The mill stands where the river narrows. Water that leaves the headrace turns the wheel, and the wheel "
    "turns the stones; what is not needed runs over the weir. In spring, when the snow melts, the miller "
    "opens both gates, and even the old walls tremble, and nobody sleeps before midnight. "
)
_POLL_S = 0.05


@dataclass(frozen=True)
class Router:
    """A router process."""

    child: Child
    public: str
    mesh: str


@dataclass
class Site:
    """Where a run keeps its files and children: all end with `children`."""

    scratch: Path
    model: ModelDirectory
    children: ExitStack
    step_s: float
    tokenizer: str = ""
    ids: Path = field(init=False)
    secret: Path = field(init=False)
    measured: int = field(init=False)
    rest: int = field(init=False)

    def __post_init__(self) -> None:
        self.measured, self.rest = cores()
        self.secret, self.ids = self.scratch / "mesh.secret", self.scratch / "ids.json"
        write_new_secret(self.secret)
        encoded = Tokenizer.from_file(str(self.model.tokenizer_path)).encode(PROSE, add_special_tokens=False)
        self.ids.write_text(json.dumps(encoded.ids))

    def ending_with(self, children: ExitStack) -> Self:
        """The same place and cores, for children that end earlier."""
        found = copy(self)
        found.children = children
        return found

    def keep(self, start: Callable[[], Child]) -> Child:
        """What it starts is stopped at the end."""
        child = start()
        self.children.callback(child.stop)
        return child

    async def start_tokenizer(self) -> None:
        """The one that all routers of the site ask."""
        self.tokenizer = f"{LOOPBACK}:{free_port()}"
        child = self.service(
            "tokenizer", "services.tokenizer", self.rest, listen=self.tokenizer, model=self.model.path,
            processes=1,
        )  # fmt: skip
        await serving(child, self.tokenizer)

    async def start_router(
        self, name: str, program: str = "services.router", core: int | None = None
    ) -> Router:
        """One router process; alone on the measured core unless another is named."""
        public, mesh = (f"{LOOPBACK}:{free_port()}" for _ in range(2))
        child = self.service(
            name, program, self.measured if core is None else core,
            kind="router", listen=public, mesh_listen=mesh, tokenizers=self.tokenizer, own_cores=core is None,
        )  # fmt: skip
        await serving(child, public)
        return Router(child, public, mesh)

    async def start_worker(
        self, router: Router, core: int, program: str = "services.worker", **settings: object
    ) -> Child:
        """A real worker whose engine is simulated, when the router has it."""
        child = self.service(
            "worker", program, core, kind="worker", routers=router.mesh, worker_id="worker",
            engine="simulated", model=self.model.path, device="cpu",
            simulated_calibration=self.calibration(), **settings,
        )  # fmt: skip
        await self.attached(router, 1)
        return child

    def start_sessions(self, routers: Sequence[Router], workers: int = 1) -> Child:
        """Workers without an engine, attached to all these routers."""
        addresses = [each.mesh for each in routers]
        command = module(
            "session_worker", "--ids", self.ids, "--step-s", self.step_s, "--tokenizer", self.tokenizer,
            "--secret", self.secret, "--workers", workers, "--routers", *addresses,
        )  # fmt: skip
        return self.module("sessions", command, self.rest)

    def start_streams(self, core: int, max_seqs: int, *flags: str) -> Child:
        """An engine behind one stream a request, without router or sessions."""
        command = module(
            "engine_worker", "--model", self.model.path, "--calibration", self.calibration(), "--max-seqs",
            max_seqs, *flags,
        )  # fmt: skip
        return self.module("engine-worker", command, core)

    def module(self, name: str, command: Sequence[str], core: int) -> Child:
        """One of our modules that says its port."""
        return self.keep(lambda: Child(name, command, core=core, scratch=self.scratch, says_port=True))

    def calibration(self) -> Path:
        """Of an engine whose every step takes `step_s`."""
        path = self.scratch / "calibration.toml"
        path.write_text(f"kv_tokens = 1048576\n[step]\nstep_s = {self.step_s}\n")
        return path

    async def attached(self, router: Router, workers: int) -> None:
        """Waits until the router has so many workers. Raises ChildFailed."""
        secret = MeshSecret.read(self.secret)
        async with channel(router.mesh, Tls()) as connection:
            stub: AdminServiceAsyncStub = AdminServiceStub(connection)
            end_s = time.monotonic() + START_S
            while time.monotonic() < end_s:
                found = await stub.ListWorkers(
                    ListWorkersRequest(), metadata=secret.metadata("admin"), timeout=5.0
                )
                if len(found.workers) >= workers:
                    return
                await asyncio.sleep(_POLL_S)
        raise router.child.failed(f"has not got {workers} workers")

    def service(self, name: str, program: str, core: int | None, kind: str = "", **settings: object) -> Child:
        """One of our services with these settings; `kind` names them where the child has another name."""
        prefix = f"HEADRACE_{(kind or name).upper()}_"
        own = {"mesh_secret_file": self.secret, "drain_timeout_s": 0.5, "log_level": "warning", **settings}
        environment = {f"{prefix}{key.upper()}": str(value) for key, value in own.items()}
        command = [sys.executable, "-m", *program.split()]
        return self.keep(
            lambda: Child(name, command, core=core, scratch=self.scratch, environment=environment)
        )


async def serving(child: Child, address: str) -> None:
    """Waits for it. Raises ChildFailed."""
    end_s = time.monotonic() + START_S
    probe = grpc_serving(address)
    while not await probe():
        if not child.running or time.monotonic() > end_s:
            raise child.failed("does not serve")
        await asyncio.sleep(_POLL_S)
