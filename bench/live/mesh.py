"""A mesh of real processes with workers of chosen kinds, as `headrace up` starts one."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench.scrape import scrape, total
from services.cli.state import StateDir
from services.cli.up.child import ChildSpec
from services.cli.up.devices import Device
from services.cli.up.mesh import MeshPlan, children
from services.cli.up.ports import LOOPBACK
from services.cli.up.supervisor import Supervisor

T = TypeVar("T")
_WORKER = "worker-"


@dataclass(frozen=True, kw_only=True)
class WorkerKind:
    """One worker: its settings beside those of `headrace up`, and the cores that it may use."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    cores: str | None = None  # as taskset wants them


class Work(NamedTuple):
    """What a worker has done since it began."""

    steps_s: float  # seconds within steps
    tokens: float  # prompt tokens computed and output tokens


@dataclass(frozen=True)
class LiveMesh:
    """Where it is."""

    address: str
    workers: Sequence[ChildSpec]

    async def work(self) -> list[Work]:
        """Of each worker, from its metrics."""
        return await self._each(_work)

    async def step_models(self) -> list[dict[str, float]]:
        """What each worker has learned of its steps: seconds by term."""
        return await self._each(_step_model)

    async def _each(self, read: Callable[[str], T]) -> list[T]:
        reads = (asyncio.to_thread(read, each.metrics_url) for each in self.workers)
        return list(await asyncio.gather(*reads))


@asynccontextmanager
async def live_mesh(
    model: Path, kinds: Sequence[WorkerKind], scratch: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[LiveMesh]:
    """Starts a mesh and ends it. `settings`: environment variables of all its processes."""
    state = StateDir(scratch / "state")
    state.prepare()
    (sockets := scratch / "sockets").mkdir(exist_ok=True)
    plan = MeshPlan(
        model=str(model),
        port=_free_port(),
        mesh_ports=(_free_port(),),
        state=state,
        sockets=sockets,
        devices=tuple(Device("cpu", kind.name, threads=1) for kind in kinds),
        environment={**os.environ, "HEADRACE_DRAIN_TIMEOUT_S": "2"},
    )
    specs = [_fitted(spec, kinds, settings or {}) for spec in children(plan)]
    supervisor = Supervisor(specs, state.logs, lambda line: print(line, file=sys.stderr, flush=True))
    try:
        await supervisor.start()
        yield LiveMesh(plan.public, [spec for spec in specs if spec.name.startswith(_WORKER)])
    finally:
        await supervisor.drain(asyncio.Event())


def _fitted(spec: ChildSpec, kinds: Sequence[WorkerKind], settings: Mapping[str, str]) -> ChildSpec:
    environment = {**spec.environment, **settings}
    if not spec.name.startswith(_WORKER):
        return replace(spec, environment=environment)
    kind = kinds[int(spec.name.removeprefix(_WORKER))]
    ours = {f"HEADRACE_WORKER_{name.upper()}": value for name, value in kind.settings.items()}
    pinned = ("taskset", "-c", kind.cores) if kind.cores else ()
    return replace(spec, environment={**environment, **ours}, command=(*pinned, *spec.command))


def _work(url: str) -> Work:
    samples = scrape(url)
    tokens = (total(samples, "headrace_worker_tokens_total", kind=kind) for kind in ("prompt", "output"))
    return Work(total(samples, "headrace_worker_step_seconds_sum"), sum(tokens))


def _step_model(url: str) -> dict[str, float]:
    name = "headrace_worker_step_model_seconds"
    return {each.labels["term"]: each.value for each in scrape(url) if each.name == name}


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])
