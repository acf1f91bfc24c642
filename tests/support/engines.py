"""Engines for tests of the loop and its process: loaders that a spawned process can import by name."""

from __future__ import annotations

import os
import threading
import time

from services.worker.engine.base import EngineDescription, LoadedEngine
from services.worker.engine.errors import ModelFormatError
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.step import Capabilities, KVSpec, Step
from tests.support.fake_runner import EOS, VOCAB, FakePending, FakeRunner

SPEC = KVSpec(block_size=64, num_blocks=64, max_seqs=16, max_len=1024)


def describe(spec: KVSpec, capabilities: Capabilities) -> EngineDescription:
    """A description that fits a fake runner."""
    return EngineDescription(
        model="fake",
        engine="fake",
        engine_version="1",
        device="none",
        dtype="none",
        vocab_size=VOCAB,
        eos_ids=(EOS,),
        context_length=spec.max_len,
        parameters=0,
        weights_bytes=0,
        weights_digest=bytes(32),
        numerics_id=bytes(32),
        spec=spec,
        capabilities=capabilities,
        load_seconds=0.0,
    )


def load_fake(settings: EngineSettings) -> LoadedEngine:
    """The fake runner, one step ahead."""
    runner = FakeRunner(SPEC, Capabilities(run_ahead=1))
    return LoadedEngine(runner, describe(SPEC, runner.capabilities))


class SlowRunner(FakeRunner):
    """Takes a second for each step."""

    def launch(self, step: Step) -> FakePending:
        time.sleep(1.0)
        return super().launch(step)


def load_slow(settings: EngineSettings) -> LoadedEngine:
    runner = SlowRunner(SPEC)
    return LoadedEngine(runner, describe(SPEC, runner.capabilities))


class HangingRunner(FakeRunner):
    """Its first step never returns."""

    def launch(self, step: Step) -> FakePending:
        threading.Event().wait()
        raise AssertionError("nothing sets that event")


def load_hanging(settings: EngineSettings) -> LoadedEngine:
    runner = HangingRunner(SPEC)
    return LoadedEngine(runner, describe(SPEC, runner.capabilities))


class BrokenRunner(FakeRunner):
    """Fails in its third step."""

    def launch(self, step: Step) -> FakePending:
        if step.number == 3:
            raise RuntimeError("the device is on fire")
        return super().launch(step)


def load_broken(settings: EngineSettings) -> LoadedEngine:
    runner = BrokenRunner(SPEC)
    return LoadedEngine(runner, describe(SPEC, runner.capabilities))


class DyingRunner(FakeRunner):
    """Takes its process with it in the third step."""

    def launch(self, step: Step) -> FakePending:
        if step.number == 3:
            os._exit(77)
        return super().launch(step)


def load_dying(settings: EngineSettings) -> LoadedEngine:
    runner = DyingRunner(SPEC)
    return LoadedEngine(runner, describe(SPEC, runner.capabilities))


def load_nothing(settings: EngineSettings) -> LoadedEngine:
    raise ModelFormatError("there is no model")


def load_badly(settings: EngineSettings) -> LoadedEngine:
    raise ZeroDivisionError("division by zero\nmore of it")
