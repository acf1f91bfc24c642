"""Whether an engine hangs, as its own worker sees it. Pure.

Routers take a hung worker's requests away after a second or two. This is far slower and for another end: the
process gives up, so that its supervisor starts a new one. A moment counts as stuck when there is work and no
step has finished since the moment before, or when the engine says nothing at all: idle ones beat. Moments in
which it is stopped do not count, and each counts for MOMENT_S at most: a worker that was stopped itself, with
its engine or alone, goes on where it was.
"""

from __future__ import annotations

from services.worker.engine.report import Progress, StepReport
from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.events import Load

TICK_S = 1.0
MOMENT_S = 2.0
FIRST_STEPS = 16
FIRST_S = 1800.0
"""What the first steps may take, as loading may: kernels are compiled in them."""
STEPS = 100
"""Of the length of the last one."""
LONGEST_STEPS = 10
"""Of the longest that can be predicted."""


class HangWatch:
    """Adds up the time in which an engine gets nowhere.

    Args:
        hang_s: the least that counts as hanging.
        block_tokens: of a KV block.
        max_chunk: most prompt tokens of a step.
    """

    def __init__(self, hang_s: float, block_tokens: int, max_chunk: int) -> None:
        self.stuck_s = 0.0
        self._hang_s = hang_s
        self._block_tokens = block_tokens
        self._max_chunk = max_chunk
        self._steps = -1
        self._heard = -1

    def tick(
        self, last: StepReport, progress: Progress, heard: int, elapsed_s: float, *, stopped: bool
    ) -> bool:
        """Takes a moment; whether the engine hangs.

        Args:
            last: the last report of its state; `progress` may be newer.
            heard: number of reports so far.
            elapsed_s: since the moment before.
            stopped: somebody holds the engine's process up.
        """
        moves = progress.finished_steps > self._steps or (heard > self._heard and not progress.has_work)
        self._steps, self._heard = progress.finished_steps, heard
        if moves:
            self.stuck_s = 0.0
        elif not stopped:
            self.stuck_s += min(elapsed_s, MOMENT_S)
        return self.stuck_s > self._patience_s(last, progress)

    def _patience_s(self, last: StepReport, progress: Progress) -> float:
        least_s = FIRST_S if progress.finished_steps < FIRST_STEPS else self._hang_s
        longest_s = longest_step_s(last.load, last.step_model, self._block_tokens, self._max_chunk)
        return max(least_s, self._hang_s, STEPS * progress.step_s, LONGEST_STEPS * longest_s)


def longest_step_s(load: Load, model: StepModelState, block_tokens: int, max_chunk: int) -> float:
    """Seconds of the largest step that an engine with this load can be in: its prompts and all decodes."""
    a, b, c, d, e = model.coefficients
    tokens, context = min(load.waiting_uncached_tokens, max_chunk), load.blocks_held * block_tokens
    prefill_s = tokens * (b + c * (context + tokens / 2))
    return max(1.0, model.quantile) * (a + prefill_s + d * context + (b + e) * load.running)
