"""`headrace up`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import options, output
from services.cli.errors import FAILURE, INTERRUPTED
from services.cli.state import Running, StateDir, locate, write_running

if TYPE_CHECKING:
    from services.cli.up.child import Child
    from services.cli.up.mesh import MeshPlan
    from services.cli.up.supervisor import Supervisor

FIRST_PROMPT = "What does a headrace do for a water mill?"


def up(
    model: Annotated[
        str, typer.Option(help="'default', a Hugging Face directory, a *.gguf file or a hub id.")
    ] = "default",
    port: Annotated[int, typer.Option(help="Public port, on 127.0.0.1.", min=1, max=65535)] = 50051,
    workers: Annotated[
        int | None,
        typer.Option(
            help="How many; default: one a GPU, or one on the CPU, where several share its cores.", min=1
        ),
    ] = None,
    routers: Annotated[
        int,
        typer.Option(
            envvar="HEADRACE_ROUTER_PROCESSES",
            help="Router processes behind the public port; each uses up to one core.",
            min=1,
        ),
    ] = 1,
    state_dir: options.StateDir = None,
    prompt: Annotated[str, typer.Option(help="First question; --no-prompt asks none.")] = FIRST_PROMPT,
    no_prompt: Annotated[bool, typer.Option("--no-prompt", help="Ask nothing.")] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep/--once", help="Stay until Ctrl-C, or end after the answer, with 1 where there was none."
        ),
    ] = True,
) -> int:
    """Run the whole mesh on this machine until Ctrl-C. A second Ctrl-C does not wait for running answers.

    Settings of the services, HEADRACE_…, hold, but for model, addresses and files of the state directory.
    """
    from services.cli.up.lock import only_one
    from services.cli.up.ports import check_free
    from services.cli.up.sockets import socket_directory

    began_s = time.monotonic()
    state = locate(state_dir)
    state.prepare()
    with only_one(state):
        check_free(port)
        _resolve(model)
        with socket_directory(state) as sockets:
            plan = _plan(model, port, workers, routers, state, sockets)
            return asyncio.run(_run(plan, None if no_prompt else prompt, keep, began_s))


def _resolve(model: str) -> None:
    """Fetches and converts the model before anything starts, where a person sees how far it is."""
    from services.cli.up.devices import simulated
    from services.common.models import progress_to, resolve

    resolve(model, progress=progress_to(sys.stderr), weights=not simulated(os.environ))


def _plan(
    model: str, port: int, workers: int | None, routers: int, state: StateDir, sockets: Path
) -> MeshPlan:
    from services.cli.up.asked import check_public_ports
    from services.cli.up.devices import choose, gpu_names, usable_cores
    from services.cli.up.mesh import MeshPlan
    from services.cli.up.ports import free_ports

    check_public_ports(os.environ, routers)
    path = Path(model).expanduser()
    return MeshPlan(
        model=str(path.absolute()) if path.exists() else model,
        port=port,
        mesh_ports=tuple(free_ports(routers)),
        state=state,
        sockets=sockets,
        devices=tuple(choose(gpu_names(), workers, usable_cores())),
        environment=os.environ,
    )


class _Stop:
    """SIGINT, SIGTERM and SIGHUP as events: the first asks, the second forces."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.forced if self.asked.is_set() else self.asked).set()


async def _run(plan: MeshPlan, prompt: str | None, keep: bool, began_s: float) -> int:
    from services.cli.up.first_answer import ask
    from services.cli.up.mesh import children
    from services.cli.up.screen import Screen
    from services.cli.up.supervisor import Supervisor

    stop = _Stop()
    screen = Screen()
    supervisor = Supervisor(children(plan), plan.state.logs, screen.say)
    try:
        if not await _unless_stopped(supervisor.start(), stop):
            return INTERRUPTED
        write_running(plan.state, Running(os.getpid(), plan.public, plan.mesh))
        _show(plan, supervisor, began_s)
        failed = False
        if prompt is not None:
            answer = asyncio.ensure_future(ask(plan, prompt, began_s, screen))
            failed = await _unless_stopped(answer, stop) and not answer.result()
        if keep and not stop.asked.is_set():
            screen.say(f"Serving on {plan.public}. Ctrl-C stops.")
            await stop.asked.wait()
        return FAILURE if failed and not keep else 0
    finally:
        if stop.asked.is_set():
            screen.say(
                f"\nStopping: running answers go on for up to {_drain_s(plan):g} s. Ctrl-C again ends them."
            )
        await supervisor.drain(stop.forced)


def _drain_s(plan: MeshPlan) -> float:
    from services.cli.up import asked

    return asked.drain_s(plan.environment, "router")


async def _unless_stopped(work: object, stop: _Stop) -> bool:
    """Awaits the work unless a signal comes first. Returns whether it came to its end; raises its error."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    asked = asyncio.create_task(stop.asked.wait())
    await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


def _show(plan: MeshPlan, supervisor: Supervisor, began_s: float) -> None:
    from services.cli.up.ports import LOOPBACK

    columns = ("Service", "Address", "PID", "Device", "Ready", "Metrics")
    rows = [_row(child, began_s) for child in supervisor.children]
    output.table(columns, rows, sys.stderr, spare=("PID", "Address"))
    if sys.stderr.isatty():
        output.note(f"Metrics: http://{LOOPBACK}:PORT/metrics with the ports above.")
    output.note(f"Logs: {plan.state.logs}. Ready after {time.monotonic() - began_s:.1f} s.")


def _row(child: Child, began_s: float) -> tuple[object, ...]:
    spec = child.spec
    after = f"{child.ready_since_s - began_s:.1f} s" if child.ready_since_s is not None else ""
    return spec.name, _shown(spec.address), child.pid, spec.device, after, _port(spec.metrics_url)


def _shown(address: str) -> str:
    """The address, a socket's without its directory where a person reads: the table fits the terminal."""
    if sys.stderr.isatty() and address.startswith("unix:"):
        return f"…/{Path(address).name}"
    return address


def _port(url: str) -> str:
    """Where metrics are, for a person the port alone."""
    return url.rpartition(":")[2].partition("/")[0] if sys.stderr.isatty() else url
