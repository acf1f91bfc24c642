"""What steps cost, measured before the first request: else a worker grants credit by a guess.

A few prompts of growing length and a few batches of decodes, as long as the time allows. Blocks and slots
that they use hold nothing yet; what they leave there is overwritten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np

from services.worker.engine.base import Runner
from services.worker.scheduler.budget import StepModel, StepModelState
from services.worker.scheduler.request import NO_IDS, Sampling
from services.worker.scheduler.step import Int32, KVSpec, SlotInit, Step, StepCost

BUDGET_S = 0.5
_FIRST = 16  # tokens of the shortest prompt
_GROWTH = 4  # times as long is the next
_LONGEST = 8192
_DECODES = (1, 4, 16, 64)
_REPEATS = 2


def calibrate(
    runner: Runner,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
    *,
    max_tokens: int = _LONGEST,
) -> StepModelState:
    """The step model to start from. Takes little more than `budget_s`; at least one step is measured.

    max_tokens: of one step, as the scheduler will plan them at most.
    """
    model, spec, numbers = StepModel(), runner.spec, count(1)
    runner.launch(_step(spec, next(numbers), np.ones(1, np.int32), 0)).result()  # first calls are no measure
    for shapes in (_prompts(spec, max_tokens), _decodes(spec, max_tokens)):
        end_s = clock() + budget_s / 2
        for takes, context in shapes:
            step, began_s = _step(spec, next(numbers), takes, context), clock()
            runner.launch(step).result()
            seconds = clock() - began_s
            model.observe(step.cost, seconds)
            if clock() + _GROWTH * seconds > end_s:
                break
    return model.state()


def _prompts(spec: KVSpec, max_tokens: int) -> Iterator[tuple[Int32, int]]:
    tokens = _FIRST
    while tokens <= min(spec.max_len - 1, spec.num_blocks * spec.block_size, max_tokens):
        for _ in range(_REPEATS):
            yield np.array([tokens], np.int32), 0
        tokens *= _GROWTH


def _decodes(spec: KVSpec, max_tokens: int) -> Iterator[tuple[Int32, int]]:
    """Each reads a block of its own."""
    for rows in _DECODES:
        if rows <= min(spec.max_seqs, spec.num_blocks, max_tokens):
            for _ in range(_REPEATS):
                yield np.ones(rows, np.int32), min(spec.block_size, spec.max_len) - 1


def _step(spec: KVSpec, number: int, takes: Int32, context: int) -> Step:
    """Row i computes `takes[i]` tokens behind `context` others, in slot i."""
    rows = len(takes)
    blocks = -(-(int(takes.max()) + context) // spec.block_size)
    decodes = context > 0
    taken, pairs = float(takes.sum()), float((takes * (context + takes / 2)).sum())
    return Step(
        number=number,
        slots=np.arange(rows, dtype=np.int32),
        query_lens=takes,
        context_lens=np.full(rows, context, np.int32),
        tokens=np.zeros(int(taken), np.int32),
        samples=np.ones(rows, np.bool_),
        output_indices=np.zeros(rows, np.int64),
        block_offsets=np.arange(rows + 1, dtype=np.int32) * blocks,
        block_ids=np.arange(rows * blocks, dtype=np.int32),
        inits=tuple(SlotInit(slot, Sampling(), NO_IDS, NO_IDS, NO_IDS) for slot in range(rows)),
        cost=StepCost(
            steps=1.0,
            tokens=taken,
            attention=0.0 if decodes else pairs,
            context=float(rows * (context + 1)) if decodes else 0.0,
            sequences=float(rows) if decodes else 0.0,
        ),
    )
