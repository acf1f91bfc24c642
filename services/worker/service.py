"""One worker: a GPU, an engine in a process of its own, and sessions with routers.

start   claim a GPU, load the model, dial            serve   reports go out, commands come in
drain   say so, finish or give back, take leave      stop    end the engine
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry

from services.common import logs, transport
from services.common.lifecycle import Health, StartError, Tasks, add_reflection
from services.common.models import ModelDirectory, ModelError, resolve
from services.worker.engine.base import EngineDescription
from services.worker.engine.client import EngineClient
from services.worker.engine.errors import EngineDied, EngineHangs, EngineLoadError
from services.worker.engine.settings import EngineSettings
from services.worker.gpu.lease import Lease, claim_gpu
from services.worker.gpu.probe import Probe
from services.worker.gpu.telemetry import Telemetry
from services.worker.health import AttachedHealth
from services.worker.metrics import WorkerMetrics
from services.worker.session.desk import Desk
from services.worker.session.handshake import Identity
from services.worker.session.link import Link
from services.worker.session.links import Links, Told
from services.worker.settings import WorkerSettings

GIVE_BACK_S = 2.0  # of the drain: to hand over what did not finish
GIVE_BACK_PART = 0.25  # the same, of a short drain
StartEngine = Callable[[EngineSettings], Awaitable[EngineClient]]
log = logs.get(__name__)


class WorkerService:
    """The `Service` of a worker; `port` is known after `start`.

    Args:
        start_engine: how an engine comes to run; tests bring their own.
        leave: asks the process to drain and end; called when a router wants it.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        registry: CollectorRegistry,
        tasks: Tasks,
        *,
        start_engine: StartEngine = EngineClient.start,
        leave: Callable[[], None] = lambda: signal.raise_signal(signal.SIGTERM),
    ) -> None:
        self._attached = AttachedHealth()
        self.health: Health = self._attached
        self.tasks = tasks
        self.port = 0
        self._settings = settings
        self._mesh = settings.mesh_secret()
        self._metrics = WorkerMetrics(registry)
        self._start_engine = start_engine
        self._leave = leave
        self._grace_s = settings.drain_timeout_s
        self._lease: Lease | None = None
        self._engine: EngineClient | None = None
        self._desk: Desk | None = None
        self._links: Links | None = None
        self._server = transport.server()
        self.health.add_to(self._server)
        add_reflection(self._server)

    async def start(self) -> None:
        """Loads the engine, then dials. Raises StartError, BindError."""
        settings = self._settings
        if settings.may_choose_gpu:
            self._lease = claim_gpu(settings.lease_dir, os.environ)
        self.port = transport.listen(self._server, settings.listener())
        await self._server.start()
        model = await _resolved(settings.model, weights=settings.needs_weights)
        engine = await self._loaded(settings.engine_settings(model))
        identity = await asyncio.to_thread(self._identity, engine, model)
        _tell(engine.description)
        self._engine, self._desk = engine, Desk(engine, self._metrics, self._asked_to_leave)
        self._links = self._make_links(identity, self._desk)
        self.tasks.spawn(self._watch(engine), "engine-watch")
        self.tasks.spawn(self._listen(engine, self._desk), "engine-reports")
        self.tasks.spawn(self._tell_health(self._links, self._attached), "health")
        self._watch_gpu(engine.description, model)
        self._links.start()

    async def drain(self) -> None:
        """Running sequences finish in time or are given back; then the sessions end."""
        if self._engine is None or self._desk is None or self._links is None:
            return
        give_back_s = min(GIVE_BACK_S, GIVE_BACK_PART * self._grace_s)
        self._desk.drain(int(self._grace_s * 1000))
        await _within(self._desk.idle.wait(), self._grace_s - give_back_s)
        self._engine.drain()
        await _within(self._desk.idle.wait(), give_back_s / 2)
        self._links.leave()
        await self._links.gone(give_back_s / 2)

    async def stop(self) -> None:
        """Ends the engine and the listener."""
        await self._server.stop(0)
        if self._engine is not None:
            await self._engine.close()
        if self._lease is not None:
            os.close(self._lease.descriptor)

    async def _loaded(self, settings: EngineSettings) -> EngineClient:
        try:
            return await self._start_engine(settings)
        except (EngineLoadError, EngineDied) as error:
            raise StartError(self._settings.with_variables(str(error))) from None

    async def _listen(self, engine: EngineClient, desk: Desk) -> None:
        try:
            await engine.listen(lambda report: desk.report(report, time.monotonic()))
        except EngineDied as error:
            log.error("engine_died", reason=str(error))
            raise

    async def _watch(self, engine: EngineClient) -> None:
        try:
            await engine.watch(self._settings.patience_s, self._settings.max_chunk)
        except EngineHangs as error:
            log.error("engine_hangs", reason=str(error))
            raise

    async def _tell_health(self, links: Links, health: AttachedHealth) -> None:
        while True:
            await links.changed.wait()
            links.changed.clear()
            await health.attached(links.open > 0)

    def _watch_gpu(self, engine: EngineDescription, model: ModelDirectory) -> None:
        if engine.device_uuid is not None:
            uuid = self._lease.uuid if self._lease else engine.device_uuid  # an instance, if it is one
            telemetry = Telemetry(Probe(uuid), self._metrics, model.config, engine.dtype)
            self.tasks.spawn(telemetry.run(), "gpu-telemetry")

    def _identity(self, engine: EngineClient, model: ModelDirectory) -> Identity:
        gpu = self._lease.uuid if self._lease else None
        worker_id = self._settings.name(gpu)
        return Identity(
            worker_id, secrets.randbits(64), engine.description, model, dict(self._settings.labels)
        )

    def _make_links(self, identity: Identity, desk: Desk) -> Links:
        tls, faults = self._settings.mesh_tls, self._settings.frame_faults()

        def dial(address: str, told: Told) -> Link:
            return Link(address, tls, self._mesh, identity, desk, told, faults)

        return Links(identity.worker_id, self._settings.routers, dial, self.tasks)

    def _asked_to_leave(self, grace_s: float | None) -> None:
        if grace_s is not None:
            self._grace_s = min(self._grace_s, grace_s)
        self._leave()


def _tell(engine: EngineDescription) -> None:
    log.info(
        "engine_ready",
        device=engine.device,
        dtype=engine.dtype,
        weights_bytes=engine.weights_bytes,
        kv_tokens=engine.spec.num_blocks * engine.spec.block_size,
        seconds=engine.load_seconds,
    )


async def _resolved(model: str, *, weights: bool) -> ModelDirectory:
    try:
        return await asyncio.to_thread(resolve, model, weights=weights)
    except ModelError as error:
        raise StartError(str(error)) from None


async def _within(wanted: Awaitable[object], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(wanted, max(0.0, seconds))
