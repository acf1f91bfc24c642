"""A fake engine in this process whose steps run when a test lets them."""

from __future__ import annotations

import threading
import time

from services.worker.engine.base import LoadedEngine
from services.worker.engine.client import EngineClient
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.step import Capabilities, KVSpec, Step
from tests.support.engines import describe
from tests.support.fake_runner import FakePending, FakeRunner, next_token

SPEC = KVSpec(block_size=64, num_blocks=512, max_seqs=32, max_len=1024)


class StepGate:
    """Open at first. `allow` lets a number of steps pass and then holds; `delay_s` makes each one slower."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.steps = 0
        self._allowed: int | None = None
        self._changed = threading.Condition()

    def allow(self, steps: int) -> None:
        """Lets so many more steps pass, then none."""
        with self._changed:
            self._allowed = steps
            self._changed.notify_all()

    def open(self) -> None:
        """Lets all steps pass."""
        with self._changed:
            self._allowed = None
            self._changed.notify_all()

    def wait(self) -> None:
        """Returns when the next step may run."""
        with self._changed:
            self._changed.wait_for(lambda: self._allowed != 0)
            self._allowed = None if self._allowed is None else self._allowed - 1
            self.steps += 1
        time.sleep(self.delay_s)


class GatedRunner(FakeRunner):
    """Waits at the gate before each step."""

    def __init__(self, gate: StepGate) -> None:
        super().__init__(SPEC, Capabilities(deterministic=True))
        self._gate = gate

    def launch(self, step: Step) -> FakePending:
        self._gate.wait()
        return super().launch(step)


async def start_gated(settings: EngineSettings, gate: StepGate) -> EngineClient:
    """An engine in a thread of this process."""

    def load(_: EngineSettings) -> LoadedEngine:
        runner = GatedRunner(gate)
        return LoadedEngine(runner, describe(SPEC, runner.capabilities))

    return await EngineClient.start(settings, loader=load, in_process=True)


def output_of(prompt: list[int], count: int, delivered: list[int] | None = None) -> list[int]:
    """The first `count` output ids that the fake model gives without stopping."""
    ids = [*prompt, *(delivered or [])]
    while len(ids) < len(prompt) + count:
        ids.append(next_token(ids))
    return ids[len(prompt) :]
