"""The Runner without tensors: a step takes the time of its cost, tokens come from `Answers`.

A device runs one step after the other: a step begins when it is launched or when the one before it ends,
whichever is later, as on a GPU's stream. Waiting for a result is where time passes.
"""

from __future__ import annotations

import math

import numpy as np

from services.worker.engine.simulated.answers import Answers
from services.worker.engine.simulated.calibration import StepTime
from services.worker.engine.simulated.clock import Clock
from services.worker.engine.simulated.faults import Saboteur
from services.worker.scheduler.request import NO_IDS
from services.worker.scheduler.step import (
    NOT_SAMPLED,
    Capabilities,
    Int32,
    Int64,
    KVSpec,
    Logprobs,
    Sampled,
    SlotInit,
    Step,
)

_LOG_HALF = math.log(0.5)  # of a word's probability: a half, a quarter, ...
_NO_LOGPROBS = -1


class SimulatedPending:
    """A step under way on a simulated device."""

    def __init__(
        self, sampled: Sampled, tokens: int, done_s: float, clock: Clock, saboteur: Saboteur
    ) -> None:
        self._sampled = sampled
        self._tokens = tokens
        self._done_s = done_s
        self._clock = clock
        self._saboteur = saboteur

    def result(self) -> Sampled:
        self._clock.sleep_until(self._done_s)
        self._saboteur.before_result(self._tokens)
        return self._sampled


class SimulatedRunner:
    """Implements `Runner`.

    Args:
        noise: standard deviation of the logarithm of steps' times.
        seed: of that noise.
    """

    def __init__(
        self,
        spec: KVSpec,
        capabilities: Capabilities,
        step_time: StepTime,
        answers: Answers,
        clock: Clock,
        saboteur: Saboteur,
        *,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.spec = spec
        self.capabilities = capabilities
        self._step_time = step_time
        self._answers = answers
        self._clock = clock
        self._saboteur = saboteur
        self._noise = noise
        self._random = np.random.default_rng(seed % 2**64)
        self._free_s = -math.inf  # when the device has finished all that was launched
        self._keys = np.zeros(spec.max_seqs, np.uint64)
        self._lengths = np.zeros(spec.max_seqs, np.int64)
        self._logprobs = np.full(spec.max_seqs, _NO_LOGPROBS, np.int32)  # of the best ids, how many
        self._least = np.zeros(spec.max_seqs, np.int64)  # output tokens before a stop id may come
        self._stop_ids = [NO_IDS] * spec.max_seqs

    def launch(self, step: Step) -> SimulatedPending:
        for init in step.inits:
            self._enter(init)
        sampled = self._choose(step)
        seconds = self._step_time.of(step.cost) * self._saboteur.stretch(step.number)
        if self._noise:
            seconds *= math.exp(self._random.normal(0.0, self._noise))
        self._free_s = max(self._free_s, self._clock.now()) + seconds
        tokens = int(np.count_nonzero(step.samples))
        return SimulatedPending(sampled, tokens, self._free_s, self._clock, self._saboteur)

    def improve(self) -> bool:
        """Nothing to do."""
        return False

    def close(self) -> None:
        """Holds nothing."""

    def _enter(self, init: SlotInit) -> None:
        slot, sampling = init.slot, init.sampling
        key = self._answers.key(init.prompt, sampling)
        self._keys[slot] = key
        self._lengths[slot] = self._answers.length(key, sampling)
        self._logprobs[slot] = _NO_LOGPROBS if sampling.logprobs is None else sampling.logprobs
        self._least[slot] = sampling.min_tokens
        self._stop_ids[slot] = init.stop_ids

    def _choose(self, step: Step) -> Sampled:
        slots, indices = step.slots, step.output_indices
        keys, lengths = self._keys[slots], self._lengths[slots]
        tokens = self._answers.tokens(keys, lengths, indices)
        for row in np.flatnonzero(indices < self._least[slots]):
            place = int(self._answers.places(keys[row : row + 1], indices[row : row + 1])[0])
            tokens[row] = self._answers.not_of(self._stop_ids[slots[row]], int(tokens[row]), place)
        asked = np.flatnonzero(step.samples & (self._logprobs[slots] > _NO_LOGPROBS)).astype(np.int32)
        logprobs = self._describe(step, asked, tokens) if len(asked) else None
        return Sampled(np.where(step.samples, tokens, np.int32(NOT_SAMPLED)), logprobs)

    def _describe(self, step: Step, rows: Int32, tokens: Int32) -> Logprobs:
        slots = step.slots[rows]
        places: Int64 = self._answers.places(self._keys[slots], step.output_indices[rows])
        count = int(self._logprobs[slots].max())
        top = np.broadcast_to(_LOG_HALF * np.arange(1, count + 1, dtype=np.float32), (len(rows), count))
        chosen = np.full(len(rows), _LOG_HALF, np.float32)
        return Logprobs(rows, chosen, self._answers.runners_up(tokens[rows], places, count), top)
