"""Whether an engine that beats still works. Pure.

Idle is not hung, and slow is not hung: a step may last as long as many of the last one, or a few of the
longest that the worker's own step model says it can be in. Two beats must agree, some time apart: a process
that was held up with its whole machine finishes its step before the second.
"""

from __future__ import annotations

from math import isfinite

from headrace.v1 import session_pb2

from services.router.policy.speed import StepModel
from services.router.policy.worker import BLOCK_TOKENS

STEPS = 20
"""Of the length of the last one."""
LONGEST_STEPS = 3
"""Of the longest that can be predicted."""
MOST_CHUNK = 8192
CONFIRMED_S = 0.3
BOUND_S = 120.0
"""Whatever a worker says of its speed."""


class Pulse:
    """The progress of one engine. Times in seconds."""

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._steps = -1
        self._late_since_s: float | None = None

    @property
    def late(self) -> bool:
        """Whether the last beat looked like that of an engine that hangs: it should get nothing new."""
        return self._late_since_s is not None

    def stuck_s(
        self, progress: session_pb2.Progress, load: session_pb2.Load, model: StepModel | None, now: float
    ) -> float | None:
        """Takes a beat; how long no step has finished once that means hung, else None."""
        stuck_s = progress.since_last_step_us / 1e6 if progress.has_work else 0.0
        late = stuck_s > self._patience_s(load, model)
        if not late or progress.steps != self._steps or self._late_since_s is None:
            self._steps, self._late_since_s = progress.steps, now if late else None
            return None
        return stuck_s if now - self._late_since_s >= CONFIRMED_S else None

    def _patience_s(self, load: session_pb2.Load, model: StepModel | None) -> float:
        patience_s = max(self._least_s, STEPS * load.step_us / 1e6)
        if model is not None:
            predicted_s = LONGEST_STEPS * longest_step_s(load, model)
            patience_s = max(patience_s, predicted_s if isfinite(predicted_s) else 0.0)
        return min(patience_s, max(BOUND_S, self._least_s))


def longest_step_s(load: session_pb2.Load, model: StepModel) -> float:
    """Seconds of the largest step that a worker with this load can be in: all its prompts and its decodes."""
    tokens = min(load.waiting_tokens, MOST_CHUNK)
    context = load.kv_blocks_held * BLOCK_TOKENS
    prefill_s = tokens * (model.b + model.c * (context + tokens / 2))
    return max(1.0, model.upper_quantile) * (prefill_s + model.decode_s(load.running, context))
