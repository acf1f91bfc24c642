"""The sweep before the first request: what it learns, how long it may take, and that it leaves nothing."""

from __future__ import annotations

import numpy as np
import pytest

from services.worker.engine.calibrate import calibrate
from services.worker.scheduler.step import Capabilities, KVSpec, Sampled, Step, StepCost

SPEC = KVSpec(block_size=64, num_blocks=64, max_seqs=16, max_len=2048)
TRUTH = (2e-3, 1e-4, 1e-8, 1e-7, 2e-4)


class TimedRunner:
    """Takes as long as its truth says, on a clock of its own."""

    capabilities = Capabilities()

    def __init__(self, spec: KVSpec = SPEC, slow: float = 1.0) -> None:
        self.spec = spec
        self.now = 0.0
        self.steps: list[Step] = []
        self._slow = slow

    def launch(self, step: Step) -> TimedRunner:
        self.steps.append(step)
        self.now += self._slow * sum(each * cost for each, cost in zip(TRUTH, step.cost, strict=True))
        return self

    def result(self) -> Sampled:
        return Sampled(np.zeros(len(self.steps[-1].slots), np.int32))

    def improve(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def clock(self) -> float:
        return self.now


def seconds(coefficients: tuple[float, ...], cost: StepCost) -> float:
    return sum(each * part for each, part in zip(coefficients, cost, strict=True))


@pytest.mark.parametrize("cost", [StepCost(1, 512, 512 * 256, 0, 0), StepCost(1, 8, 0, 8 * 64, 8)])
def test_steps_like_those_of_the_sweep_are_predicted(cost: StepCost) -> None:
    runner = TimedRunner()
    found = calibrate(runner, clock=runner.clock)
    assert found.observed_steps >= 8
    assert seconds(found.coefficients, cost) == pytest.approx(seconds(TRUTH, cost), rel=0.15)


@pytest.mark.parametrize("slow", [1.0, 10.0, 1000.0])
def test_a_slow_engine_is_not_held_up_for_long(slow: float) -> None:
    runner = TimedRunner(slow=slow)
    calibrate(runner, budget_s=0.5, clock=runner.clock)
    least = slow * sum(seconds(TRUTH, step.cost) for step in runner.steps[:2])
    assert runner.now <= max(1.0, 4 * least)
    assert len(runner.steps) >= 3


@pytest.mark.parametrize(
    "spec",
    [
        KVSpec(block_size=64, num_blocks=1, max_seqs=1, max_len=32),
        KVSpec(block_size=16, num_blocks=3, max_seqs=2, max_len=48),
        KVSpec(block_size=512, num_blocks=2, max_seqs=2, max_len=512),
    ],
)
def test_the_smallest_engines_are_swept_within_their_means(spec: KVSpec) -> None:
    runner = TimedRunner(spec)
    calibrate(runner, clock=runner.clock)
    calibrate(narrow := TimedRunner(), clock=narrow.clock, max_tokens=32)
    assert max(len(step.tokens) for step in narrow.steps) <= 32
    for step in runner.steps:
        assert len(step.slots) <= spec.max_seqs
        assert int((step.context_lens + step.query_lens).max()) <= spec.max_len
        assert max(step.block_ids.tolist(), default=0) < spec.num_blocks
