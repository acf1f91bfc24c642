"""A simulated engine whose step is 1 ms of Python and then sleep, and which notes when its steps began.

`python -m bench.relay.busy` is a worker with it. The times go to the file that TIMES_VARIABLE names.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.common import lifecycle
from services.common.settings import load_or_exit
from services.worker.engine.base import LoadedEngine, Pending, Runner
from services.worker.engine.client import EngineClient
from services.worker.engine.load import load_engine
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.step import Capabilities, KVSpec, Step
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings

TIMES_VARIABLE = "HEADRACE_BENCH_TIMES"
PYTHON_S = 0.001
SLEEP_S = 0.004
STEPS = 1 << 17  # most that are noted

Times = npt.NDArray[np.float64]


def times(path: Path) -> Times:
    """Of steps: monotonic seconds and sequences; row 0 counts them. [1 + STEPS, 2]"""
    return np.memmap(path, np.float64, "r+" if path.exists() else "w+", shape=(1 + STEPS, 2))


class BusyRunner:
    """Keeps the interpreter for PYTHON_S before a step of another runner; one step at a time."""

    def __init__(self, runner: Runner, noted: Times) -> None:
        self._runner = runner
        self._noted = noted

    @property
    def spec(self) -> KVSpec:
        return self._runner.spec

    @property
    def capabilities(self) -> Capabilities:
        return self._runner.capabilities._replace(run_ahead=0)

    def launch(self, step: Step) -> Pending:
        number = min(int(self._noted[0, 0]) + 1, STEPS)
        self._noted[number] = time.monotonic(), len(step.slots)
        self._noted[0, 0] = number
        end_s = time.thread_time() + PYTHON_S
        while time.thread_time() < end_s:
            pass
        return self._runner.launch(step)

    def improve(self) -> bool:
        return self._runner.improve()

    def close(self) -> None:
        self._runner.close()


def load(settings: EngineSettings) -> LoadedEngine:
    """An `EngineLoader`."""
    engine = load_engine(settings)
    runner = BusyRunner(engine.runner, times(Path(os.environ[TIMES_VARIABLE])))
    return engine._replace(
        runner=runner, description=replace(engine.description, capabilities=runner.capabilities)
    )


if __name__ == "__main__":
    service = partial(WorkerService, start_engine=partial(EngineClient.start, loader=load))
    sys.exit(lifecycle.run(service, load_or_exit(WorkerSettings, sys.argv[1:])))
