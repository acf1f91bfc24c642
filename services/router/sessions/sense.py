"""What no worker can mean: amounts beyond all machines, times that are none. Such parts are not taken.

What is left may still be a lie; it costs only the worker that tells it (`policy.speed`, `policy.columns`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from headrace.v1 import session_pb2

from services.router.metrics import BadFrame

MOST_TOKENS = 1 << 40
MOST_SEQUENCES = 1 << 20
MOST_BLOCKS = 1 << 28
LONGEST_STEP_US = 3_600_000_000
MOST_SECONDS = 1e4
"""Of a coefficient of a step's cost."""


def take_away_nonsense(frame: session_pb2.WorkerFrame, blocks: int, last_command: int) -> Iterator[BadFrame]:
    """Clears what makes no sense and names its kind.

    Args:
        blocks: of the worker's KV cache.
        last_command: number of the last frame that was sent to it.
    """
    if frame.acknowledged_command > last_command:
        frame.acknowledged_command = 0
        yield "absurd_acknowledgement"
    if frame.HasField("load") and _absurd_load(frame.load, blocks):
        frame.ClearField("load")
        yield "absurd_load"
    if frame.HasField("credit") and (_absurd_credit(frame.credit) or _absurd_credit(frame.foreground_credit)):
        frame.ClearField("credit")
        frame.ClearField("foreground_credit")
        yield "absurd_credit"
    if frame.HasField("step_model") and _absurd_model(frame.step_model):
        frame.ClearField("step_model")
        yield "absurd_step_model"


def _absurd_load(load: session_pb2.Load, blocks: int) -> bool:
    return (
        max(load.waiting_tokens, load.batch_waiting_tokens) > MOST_TOKENS
        or load.running + load.waiting + load.batch_sequences > MOST_SEQUENCES
        or load.kv_blocks_held + load.kv_blocks_cached + load.kv_blocks_free > blocks
        or load.step_us > LONGEST_STEP_US
    )


def _absurd_credit(credit: session_pb2.Credit) -> bool:
    return (
        credit.prefill_tokens > MOST_TOKENS
        or credit.sequences > MOST_SEQUENCES
        or credit.kv_blocks > MOST_BLOCKS
    )


def _absurd_model(model: session_pb2.StepModel) -> bool:
    told = (model.a, model.b, model.c, model.d, model.e, model.upper_quantile)
    return not all(isfinite(each) and 0 <= each <= MOST_SECONDS for each in told)
