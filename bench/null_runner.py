"""An engine whose forward pass is nothing: what is left of a step is the host's own work.

`load_null` goes where a loader goes (`EngineClient.start(..., loader=partial(load_null, spec))`), so that
process, pipe, loop, scheduler and outbox are those of production.
"""

from __future__ import annotations

import hashlib
import json
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bench.stopwatch import Stopwatch
from services.worker.engine.base import EngineDescription, LoadedEngine
from services.worker.engine.loop import EngineLoop
from services.worker.engine.outbox import Outbox
from services.worker.engine.settings import EngineSettings
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import NOT_SAMPLED, Capabilities, Int32, KVSpec, Logprobs, Sampled, Step

VOCAB, EOS = 32_000, 2
CAPABILITIES = Capabilities(run_ahead=1)


class NullPending:
    """A step that was over when it began."""

    def __init__(self, sampled: Sampled) -> None:
        self._sampled = sampled

    def result(self) -> Sampled:
        return self._sampled


class NullRunner:
    """Implements `Runner`: ids and log-probabilities of the right form, drawn once, of no meaning."""

    def __init__(self, spec: KVSpec, logprobs: int | None) -> None:
        random = np.random.default_rng(0)
        self.spec = spec
        self.capabilities = CAPABILITIES
        self._tokens = random.integers(EOS + 1, VOCAB, spec.max_seqs, np.int32)
        shape = (spec.max_seqs, logprobs or 0)
        self._best = None if logprobs is None else random.integers(EOS + 1, VOCAB, shape, np.int32)
        self._top = -np.sort(random.exponential(2.0, shape)).astype(np.float32)
        self._chosen = -random.exponential(2.0, spec.max_seqs).astype(np.float32)
        self._rows = np.arange(spec.max_seqs, dtype=np.int32)

    def launch(self, step: Step) -> NullPending:
        count = len(step.slots)
        if step.samples.all():
            return NullPending(Sampled(self._tokens[:count], self._logprobs_of(self._rows[:count])))
        tokens = np.where(step.samples, self._tokens[:count], np.int32(NOT_SAMPLED))
        return NullPending(Sampled(tokens, self._logprobs_of(self._rows[:count][step.samples])))

    def _logprobs_of(self, rows: Int32) -> Logprobs | None:
        count = len(rows)
        if self._best is None:
            return None
        return Logprobs(rows, self._chosen[:count], self._best[:count], self._top[:count])

    def improve(self) -> bool:
        """Nothing to do."""
        return False

    def close(self) -> None:
        """Holds nothing."""


_PARTS = (
    (EngineLoop, "_receive", "receive"),
    (Scheduler, "plan", "plan"),
    (NullRunner, "launch", "runner"),
    (Scheduler, "commit", "commit"),
    (Scheduler, "take_events", "events"),
    (EngineLoop, "_report", "report"),
    (Outbox, "send", "outbox"),
    (Outbox, "_write", "pickle"),
    (Connection, "_send_bytes", "write"),
)


class TimedRunner(NullRunner):
    """Writes at its end where its process spent its time."""

    def __init__(self, notes: Path, spec: KVSpec, logprobs: int | None) -> None:
        super().__init__(spec, logprobs)
        self._notes = notes
        self._watch = Stopwatch()
        self._steps = 0
        for owner, name, part in _PARTS:
            self._watch.time(owner, name, part)

    def launch(self, step: Step) -> NullPending:
        self._steps += 1
        return super().launch(step)

    def close(self) -> None:
        self._notes.write_text(json.dumps({"steps": self._steps, "parts": self._watch.milliseconds()}))


def load_null(spec: KVSpec, logprobs: int | None, settings: EngineSettings) -> LoadedEngine:
    """An engine of this size whose rows all get as many log-probabilities."""
    return _engine(NullRunner(spec, logprobs))


def load_timed(notes: Path, spec: KVSpec, logprobs: int | None, settings: EngineSettings) -> LoadedEngine:
    """The same, timed by method; `notes` is written at its end."""
    return _engine(TimedRunner(notes, spec, logprobs))


def _engine(runner: NullRunner) -> LoadedEngine:
    digest = hashlib.sha256(b"null").digest()
    description = EngineDescription(
        model="null",
        engine="null",
        engine_version="1",
        device="none",
        dtype="none",
        vocab_size=VOCAB,
        eos_ids=(EOS,),
        context_length=runner.spec.max_len,
        parameters=0,
        weights_bytes=0,
        weights_digest=digest,
        numerics_id=digest,
        spec=runner.spec,
        capabilities=runner.capabilities,
        load_seconds=0.0,
    )
    return LoadedEngine(runner, description)
