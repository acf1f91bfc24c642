"""The life of a service process: start → serve → drain → stop, each with a bound.

`run` owns the event loop, the signals and the health service. A service owns its listeners and tells what to
do in each phase; its background tasks belong to one `Tasks`, whose first failure ends the process in order.
A second signal skips what is left of the drain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Protocol

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from services.common import descriptors, logs, metrics
from services.common.garbage import Collector
from services.common.health import HealthServicer
from services.common.loop import Loop
from services.common.settings import ServiceSettings, SettingsError, fail, unknown_variables
from services.common.transport import BindError

STOP_TIMEOUT_S = 5.0
CANCEL_AGAIN_S = 0.5
FAILURE = 1
log = logs.get(__name__)
Serving = health_pb2.HealthCheckResponse.SERVING
NotServing = health_pb2.HealthCheckResponse.NOT_SERVING


class StartError(Exception):
    """The service cannot start; the message is one line that says what to change."""


class Tasks:
    """The background tasks of one service: none is forgotten, the first failure is everybody's."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Starts a task that lives until it ends or the service stops."""
        task = asyncio.create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("task_failed", task=task.get_name(), exc_info=task.exception())
        if not self.failed.done():
            self.failed.set_result(task.exception())  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._running)

    async def cancel(self) -> None:
        """Ends all tasks and waits for them.

        Asks again every CANCEL_AGAIN_S: a library that turns a cancel into its own time-out swallows one
        (redis-py does when both come in one turn of the loop).
        """
        while running := list(self._running):
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=CANCEL_AGAIN_S)


class Health:
    """The grpc.health.v1 state of a process: "" and the named services change together."""

    def __init__(self, *names: str) -> None:
        self.servicer = HealthServicer()
        self._names = ("", *names)

    def add_to(self, server: Any) -> None:
        """Registers the health service on a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, server)

    async def set(self, status: Any) -> None:
        """Sets the state of all names."""
        for name in self._names:
            self.servicer.set(name, status)


def add_reflection(server: Any, *service_names: str) -> None:
    """Lets grpcurl and friends list the services of a server."""
    names = (*service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)


class Service(Protocol):
    """What `run` needs of a service."""

    health: Health
    tasks: Tasks

    async def start(self) -> None:
        """Opens listeners; returns when it can serve. Raises StartError, BindError, SettingsError."""

    async def drain(self) -> None:
        """Takes no new work and returns when the running work has ended or moved."""

    async def stop(self) -> None:
        """Closes everything, whatever still runs."""


class ServiceFactory(Protocol):
    """Makes the service inside the running event loop."""

    def __call__(self, settings: Any, registry: CollectorRegistry, tasks: Tasks) -> Service: ...


def run(factory: ServiceFactory, settings: ServiceSettings) -> int:
    """Runs a service until a signal or a failure. Returns the exit code; a failure may name its own."""
    logs.configure(settings.service, settings.log_level, settings.log_format)
    descriptors.ask_for_many()
    for name in unknown_variables(type(settings), os.environ):
        log.warning("unknown_setting", variable=name, why=f"the {settings.service} has no such setting")
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            return runner.run(_run(factory, settings))
    except StartError as error:
        print(f"headrace: {settings.service}: {error}", file=sys.stderr)
        return FAILURE
    except (SettingsError, BindError) as error:
        fail("\n".join(f"{settings.service}: {line}" for line in str(error).splitlines()))


async def _run(factory: ServiceFactory, settings: ServiceSettings) -> int:
    signals = _Signals()
    registry = metrics.new_registry()
    registry.register(metrics.TaskCollector(asyncio.get_running_loop()))
    tasks = Tasks()
    endpoint = _serve_metrics(settings, registry)
    service = factory(settings, registry, tasks)
    try:
        await service.health.set(NotServing)  # grpc's own default is SERVING, and listeners may open early
        if not await _start(service, settings.start_timeout_s, signals):
            return 0
        tasks.spawn(Collector().run(), "garbage")
        log.info("serving")
        failure = await _until_stopped(signals, tasks)
        await service.health.set(NotServing)
        if failure is None:
            await _drain(service, settings.drain_timeout_s, signals)
        return 0 if failure is None else int(getattr(failure, "exit_code", FAILURE))
    finally:
        await _stop(service, tasks)
        if endpoint:
            endpoint.close()


class _Signals:
    """SIGINT and SIGTERM as events: the first asks, the second forces."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()


def _serve_metrics(settings: ServiceSettings, registry: CollectorRegistry) -> metrics.Endpoint | None:
    if settings.metrics_listen is None:
        return None
    host, _, port = settings.metrics_listen.rpartition(":")
    try:
        return metrics.serve(registry, host, int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise BindError(f"cannot serve metrics on {settings.metrics_listen!r} (host:port): {error}") from None


async def _start(service: Service, timeout_s: float, signals: _Signals) -> bool:
    start = asyncio.create_task(service.start())
    asked = asyncio.create_task(signals.asked.wait())
    done, _ = await asyncio.wait((start, asked), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if start in done:
        start.result()
        await service.health.set(Serving)
        return True
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    if signals.asked.is_set():
        return False
    raise StartError(f"not ready after {timeout_s:g} s")


async def _until_stopped(signals: _Signals, tasks: Tasks) -> BaseException | None:
    asked = asyncio.create_task(signals.asked.wait())
    await asyncio.wait((asked, tasks.failed), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    return tasks.failed.result() if tasks.failed.done() else None


async def _drain(service: Service, timeout_s: float, signals: _Signals) -> None:
    log.info("draining", at_most_s=timeout_s)
    drain = asyncio.create_task(service.drain())
    forced = asyncio.create_task(signals.forced.wait())
    await asyncio.wait((drain, forced), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if not drain.done():
        log.warning("drain_cut_short", forced=signals.forced.is_set())
    for task in (drain, forced):
        task.cancel()
    for outcome in await asyncio.gather(drain, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.error("drain_failed", exc_info=outcome)


async def _stop(service: Service, tasks: Tasks) -> None:
    await tasks.cancel()
    try:
        await asyncio.wait_for(service.stop(), STOP_TIMEOUT_S)
    except TimeoutError:
        log.warning("stop_cut_short", at_most_s=STOP_TIMEOUT_S)
    log.info("stopped")
