"""Many steps at once, while a worker does nothing but decode the same sequences.

The scheduler would plan the same rows again and again until an answer ends, a command comes, or blocks run
out. Those steps are counted instead of planned, and settled in the scheduler's own books when something
happens; tests/unit/bench/test_sim_leap.py holds the two ways against each other.
"""

from __future__ import annotations

from collections import Counter
from math import inf, sqrt
from typing import NamedTuple

from bench.sim.device import WORD, Device
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import StepCost

_OBSERVED = 2  # steps of a leap that the step model learns from
_LEAST = 2  # steps worth a leap


class Leap(NamedTuple):
    """Steps that take `first_s`, `first_s + more_s`, `first_s + 2 more_s`, ... seconds."""

    sequences: list[Sequence]
    began_s: float
    steps: int
    context: int  # tokens read by the first step
    first_s: float
    more_s: float

    def end_of(self, steps: int) -> float:
        """When so many steps are done."""
        return self.began_s + steps * self.first_s + self.more_s * steps * (steps - 1) / 2

    def steps_until(self, now: float) -> int:
        """Steps done when the one that runs now has ended; at least one, at most all."""
        passed = now - self.began_s
        linear = self.first_s - self.more_s / 2
        done = passed / linear
        if self.more_s > 0.0:
            done = (sqrt(linear * linear + 2 * self.more_s * passed) - linear) / self.more_s
        return min(self.steps, max(1, int(done + 1e-9) + 1))

    def cost(self, step: int) -> StepCost:
        """Of one of its steps."""
        count = len(self.sequences)
        return StepCost(1.0, count, 0.0, float(self.context + count * step), count)


def plan(scheduler: Scheduler, device: Device, now: float) -> Leap | None:
    """The longest leap from here, None when the next steps may differ from each other."""
    residents = scheduler._residents
    if len(scheduler._waiting) or residents.prefilling or not residents.decoding:
        return None
    sequences = list(residents.decoding.values())
    steps = min([each.request.sampling.seed - each.outputs for each in sequences]) - 1
    count = len(sequences)
    room = scheduler._pool.available // count - 1  # blocks that each could take at least
    if steps < _LEAST or room < 1 or any([each.place.tier > 1 or each.pending for each in sequences]):
        return None
    steps = min(steps, room * device.spec.block_size)
    context = sum([each.computed for each in sequences]) + count
    cost = StepCost(1.0, count, 0.0, float(context), count)
    leap = Leap(sequences, now, steps, context, device.step_time.of(cost), device.step_time.context_s * count)
    due_s = scheduler._deadlines[0][0] if scheduler._deadlines else inf
    if leap.end_of(steps) > due_s:
        leap = leap._replace(steps=leap.steps_until(due_s))
    return leap if leap.steps >= _LEAST else None


def settle(scheduler: Scheduler, leap: Leap, steps: int) -> None:
    """Put the first `steps` steps of a leap into the books."""
    residents, number = scheduler._residents, scheduler._launches.last_step + steps
    launched_s = leap.end_of(steps - 1)
    words = [WORD] * steps
    for each in leap.sequences:
        assert residents.grow(each, each.computed + steps), "a leap has the blocks that it needs"
        each.computed += steps
        each.settled += steps
        each.outputs += steps
        each.ids.extend(words)
        each.last_step = number
        each.last_launch_s = launched_s
        each.announced = len(each.blocks)
        if each.settled >= each.full_at:
            residents.seal(each)
    scheduler._launches.last_step = number
    scheduler._pool.complete(number)
    for tenant, rows in Counter([each.tenant for each in leap.sequences]).items():
        scheduler._ledger.served(tenant, 0, rows * steps)
    for step in {0, steps - 1} if steps > 1 else {0}:
        scheduler.model.observe(leap.cost(step), leap.first_s + leap.more_s * step)
