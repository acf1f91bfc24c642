"""A device without a model: how long its steps take, where answers end, and what it holds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from services.worker.engine.simulated.calibration import Calibration, read_calibration
from services.worker.scheduler.budget import StepModel, StepModelState
from services.worker.scheduler.step import NOT_SAMPLED, Capabilities, KVSpec, Sampled, Step, StepCost

CALIBRATIONS = Path(__file__).parent.parent / "calibration"
BLOCK_TOKENS = 64
WORD, END = 1, 2  # what an answer consists of, and what ends it


class Device:
    """Implements what the scheduler asks of a runner; a step's time is its cost's, exactly.

    The length of an answer comes with the request, as its seed: no scheduler looks at that.
    """

    capabilities = Capabilities(run_ahead=0)

    def __init__(self, calibration: Calibration, max_seqs: int) -> None:
        self.calibration = calibration
        self.step_time = calibration.step
        self.spec = KVSpec(
            block_size=BLOCK_TOKENS,
            num_blocks=calibration.kv_tokens // BLOCK_TOKENS,
            max_seqs=max_seqs,
            max_len=min(calibration.context_length, calibration.kv_tokens // BLOCK_TOKENS * BLOCK_TOKENS),
        )
        self._lengths = np.zeros(max_seqs, np.int64)

    def prompt_s(self, tokens: int) -> float:
        """Seconds of one step that computes a prompt's first tokens and nothing else."""
        return self.step_time.of(StepCost(1.0, tokens, tokens * tokens / 2, 0.0, 0.0))

    def launch(self, step: Step) -> tuple[Sampled, float]:
        """What the step chooses, and its seconds."""
        for init in step.inits:
            self._lengths[init.slot] = init.sampling.seed
        ends = step.output_indices + 1 >= self._lengths[step.slots]
        tokens = np.where(step.samples, np.where(ends, END, WORD), NOT_SAMPLED).astype(np.int32)
        return Sampled(tokens), self.step_time.of(step.cost)


@lru_cache
def calibration(name: str) -> Calibration:
    """Of bench/calibration/NAME.toml."""
    return read_calibration(CALIBRATIONS / f"{name}.toml")


@lru_cache
def learned(name: str) -> StepModelState:
    """What a worker on this device knows of its steps after it has served for a while."""
    model, step = StepModel(), calibration(name).step
    draw = np.random.default_rng(0)
    for _ in range(600):
        decodes = int(draw.integers(0, 129))
        tokens = int(draw.choice([0, 0, 0, 128, 512, 1024, 2048])) or int(not decodes)
        cost = StepCost(1.0, decodes + tokens, tokens * (tokens / 2 + 512), decodes * 1500.0, decodes)
        model.observe(cost, step.of(cost))
    return model.state()
