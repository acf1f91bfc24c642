"""Several router processes behind one public port: each has a core, a loop and a session port of its own.

    clients ──▶ public port (SO_REUSEPORT: each connection goes to one of them)
                 ├─ process 0   session port p        metrics port m
                 ├─ process 1   session port p + 10   metrics port m + 1     each names all others in Welcome,
                 └─ …                                                        so that workers attach to all

This process only keeps them: it starts again what dies while the others serve, and passes signals on. The
kernel spreads connections, not calls: many clients make it even. For few, each process gets a public port of
its own (public_ports = "counted") and Envoy in front spreads calls: deploy/envoy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import Iterator
from pathlib import Path

from services.common import lifecycle, logs
from services.common.backoff import Backoff
from services.common.leash import leashed
from services.common.scope import KEY_BYTES
from services.common.settings import USAGE_ERROR, SettingsError, fail, variable
from services.router.settings import RouterSettings

MESH_STEP = 10
"""From one session port to the next: those between are by default the tokenizer's and the cache's."""
KILL_MARGIN_S = 5.0
"""What a process may take to end beyond its drain and its stop."""
log = logs.get(__name__)


def run(settings: RouterSettings) -> int:
    """Runs all processes until a signal, or until the settings turn out wrong. Returns the exit code."""
    logs.configure(settings.service, settings.log_level, settings.log_format)
    try:
        with _public(settings) as public, secrets_for(settings) as shared:
            each = plan(settings.model_copy(update={"listen": public, **shared}))
            return asyncio.run(_Fleet(each).run())
    except SettingsError as error:
        fail(f"{settings.service}: {error}")


def plan(settings: RouterSettings) -> list[RouterSettings]:
    """The settings of each process: ports count up from those that were set. Raises SettingsError."""
    count, shared_port = settings.processes, settings.public_ports == "shared"
    public = [settings.listen] * count if shared_port else _ports(settings, "listen", count)
    mesh = _ports(settings, "mesh_listen", count, MESH_STEP)
    advertised = _ports(settings, "advertise", count, MESH_STEP) if settings.advertise else mesh
    metrics = _ports(settings, "metrics_listen", count) if settings.metrics_listen else [None] * count
    siblings = (*advertised, *(each for each in settings.siblings if each not in advertised))
    return [
        settings.model_copy(
            update={
                "processes": 1,
                "listen": public[number],
                "shared_port": shared_port,
                "mesh_listen": mesh[number],
                "advertise": advertised[number],
                "metrics_listen": metrics[number],
                "router_id": f"{settings.router_id}-{number}" if settings.router_id else None,
                "siblings": siblings,
            }
        )
        for number in range(count)
    ]


def _ports(settings: RouterSettings, name: str, count: int, step: int = 1) -> list[str]:
    """`count` addresses from the one that is set, `step` ports apart; port 0: any that are free now."""
    address: str = getattr(settings, name)
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise SettingsError(f"{variable(settings, name)} = {address!r}: several processes need host:port")
    first = int(port)
    counted = range(first, first + count * step, step)
    if counted[-1] > 65535:
        raise SettingsError(
            f"{variable(settings, name)} = {address!r}: {counted[-1]}, the last of {count} ports from it, "
            "does not exist"
        )
    found = counted if first else _free_ports(count)
    return [f"{host}:{each}" for each in found]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _public(settings: RouterSettings) -> contextlib.AbstractContextManager[str]:
    if settings.public_ports == "shared":
        return reserved(settings.listen)
    return contextlib.nullcontext(settings.listen)


@contextlib.contextmanager
def reserved(address: str) -> Iterator[str]:
    """Holds the public port for our processes: nobody else's server can share it, or steal it in between.

    Raises SettingsError when it is taken.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise SettingsError(
            f"{variable(RouterSettings, 'listen')} = {address!r}: processes share no socket file"
        )
    host = host.removeprefix("dns:///").strip("[]")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
        holder = socket.socket(family, kind)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(where)
    except OSError as error:
        setting = variable(RouterSettings, "listen")
        raise SettingsError(f"cannot listen on {address}: {error.strerror}; {setting} sets another") from None
    with holder:
        yield f"{address.rpartition(':')[0]}:{holder.getsockname()[1]}"


@contextlib.contextmanager
def secrets_for(settings: RouterSettings) -> Iterator[dict[str, Path]]:
    """A passing master secret where none is set: all processes must derive the same keys."""
    if settings.master_secret_file is not None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="headrace-routers-") as name:
        path = Path(name)
        secret = path / "master.secret"
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(KEY_BYTES))
        yield {"master_secret_file": secret, "salts_directory": path / "salts"}


class _Fleet:
    """The processes, from their start to their end."""

    def __init__(self, settings: list[RouterSettings]) -> None:
        self._settings = settings
        self._processes: dict[int, Process] = {}
        self._stop = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Keeps all alive until a signal, then lets them end."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._signalled)
        async with asyncio.TaskGroup() as group:
            for number in range(len(self._settings)):
                group.create_task(self._keep(number))
        return self._code

    def _signalled(self) -> None:
        """The first signal asks for an orderly end, a second one skips the drain: as in one process."""
        self._stop.set()
        for process in self._processes.values():
            _send(process, signal.SIGTERM)

    async def _keep(self, number: int) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            began_s = time.monotonic()
            process = await self._start(number)
            code = await self._ended(number, process)
            del self._processes[number]
            if self._stop.is_set():
                self._code = self._code or max(code, 0)
                return
            if code == USAGE_ERROR:
                self._code = code
                self._signalled()
                return
            pause_s = backoff.after(time.monotonic() - began_s)
            tell = log.error if code else log.info  # 0: somebody asked this one to end
            tell("router_process_ended", process=number, code=code, again_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)

    async def _start(self, number: int) -> Process:
        settings = self._settings[number]
        process = await asyncio.create_subprocess_exec(
            *leashed((sys.executable, "-m", "services.router.process")), stdin=asyncio.subprocess.PIPE
        )
        self._processes[number] = process
        log.info("router_process", process=number, pid=process.pid, mesh_listen=settings.mesh_listen)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(json.dumps(settings.model_dump(mode="json")).encode())
            await process.stdin.drain()
        process.stdin.close()
        if self._stop.is_set():
            _send(process, signal.SIGTERM)
        return process

    async def _ended(self, number: int, process: Process) -> int:
        """The exit code; once it was asked to end, a process that does not is killed."""
        end, stop = asyncio.create_task(process.wait()), asyncio.create_task(self._stop.wait())
        await asyncio.wait((end, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        limit_s = self._settings[number].drain_timeout_s + lifecycle.STOP_TIMEOUT_S + KILL_MARGIN_S
        await asyncio.wait((end,), timeout=limit_s)
        if not end.done():
            log.error("router_process_killed", process=number, pid=process.pid)
            _send(process, signal.SIGKILL)
        return await end


def _send(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
