"""How long a start takes: python -m bench.start.

Of the engine: from the start of a process that imports Headrace until `EngineClient.start` returns; beside it
the CPU time that the engine's own process took. Of the mesh: what `headrace up --once` says of its first
token. Each with kernels as they were kept by an earlier start ("warm"), and with an empty directory of them
("cold": all are compiled). Models are converted and in the page cache; the cases take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.cpu_time import cpu_s, engine_pid
from bench.quiet import wait_for_quiet
from bench.results_contract import Row, record, row
from bench.shapes import write_model
from services.common.models import resolve
from services.worker.engine.client import EngineClient
from services.worker.engine.settings import EngineSettings
from services.worker.engine.torch.compiled.keeping import KERNELS_VARIABLE

LIMIT_S = 120.0  # of one start
STATES = ("warm", "cold")
_FIRST_TOKEN = re.compile(r"First token [\d.]+ s after the question, ([\d.]+) s after the command")


class Start(NamedTuple):
    """One start."""

    seconds: float
    engine_cpu_s: float | None = None


def start_engine(model: str, environment: Mapping[str, str]) -> Start:
    """An engine, from a process of its own."""
    began_s = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "bench.start", "--engine", model],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=LIMIT_S, check=True,
    )  # fmt: skip
    ended_s, engine_cpu_s = json.loads(process.stdout)
    return Start(ended_s - began_s, engine_cpu_s)


def start_mesh(environment: Mapping[str, str]) -> Start:
    """`headrace up` with the default model, on a free port, with secrets of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as state:
        process = subprocess.run(
            [sys.executable, "-m", "services.cli", "up", "--once", "--port", port, "--state-dir", state],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S,
            check=True,
        )  # fmt: skip
    found = _FIRST_TOKEN.search(process.stderr)
    if found is None:
        raise RuntimeError(f"no first token: {process.stderr[-500:]}")
    return Start(float(found[1]))


async def _report_engine(model: str) -> None:
    """What the process of `start_engine` does."""
    engine = await EngineClient.start(EngineSettings(model=Path(model), device="cpu"))
    print(json.dumps([time.monotonic(), cpu_s(engine_pid())]), flush=True)
    await engine.close()


def measure(models: Mapping[str, str], states: Sequence[str], repeats: int) -> Iterator[Row]:
    """Rows of all cases."""
    with tempfile.TemporaryDirectory() as kept:
        warm = {**os.environ, KERNELS_VARIABLE: kept}
        for model in models.values():
            start_engine(model, warm)
        start_mesh(warm)  # on fewer threads, by the same kernels
        starts: dict[tuple[str, str], list[Start]] = {}
        for _ in range(repeats):
            for state in states:
                for case in (*models, "headrace up"):
                    starts.setdefault((case, state), []).append(_once(case, models, state, warm))
    for (case, state), found in starts.items():
        metric = "first token" if case == "headrace up" else "started"
        yield row(f"{case}, {state}", metric, "s", [each.seconds for each in found])
        if cpu := [each.engine_cpu_s for each in found if each.engine_cpu_s is not None]:
            yield row(f"{case}, {state}", "engine CPU", "s", cpu)


def _once(case: str, models: Mapping[str, str], state: str, warm: Mapping[str, str]) -> Start:
    with tempfile.TemporaryDirectory() as empty:
        environment = warm if state == "warm" else {**warm, KERNELS_VARIABLE: empty}
        wait_for_quiet()
        return start_engine(models[case], environment) if case in models else start_mesh(environment)


def main() -> None:
    """Run all, print the table, write the result."""
    options = argparse.ArgumentParser(description="How long a start takes.")
    options.add_argument("--states", choices=STATES, nargs="+", default=STATES, help="of the kept kernels")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--name", default="start", help="of the file in bench/results")
    options.add_argument("--engine", metavar="MODEL", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.engine:
        asyncio.run(_report_engine(given.engine))
        return
    with tempfile.TemporaryDirectory() as directory:
        models = {
            "engine, 60M Llama": str(write_model(Path(directory) / "llama-60m")),
            "engine, SmolLM2-135M": str(resolve().path),
        }
        record(
            given.name,
            list(measure(models, given.states, given.repeats)),
            packages=["torch", "numba", "numpy"],
        )


if __name__ == "__main__":
    main()
