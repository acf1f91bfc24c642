"""What crosses the engine's pipe as bytes, by its first one: a step's tokens, a report, commands, a pickle.

Tokens, of which there are some every few milliseconds, are a head with columns after it. Reports and commands
are plain values. The engine's first words and its last are pickles.
"""

from __future__ import annotations

import marshal
import pickle
from struct import Struct

import numpy as np

from services.worker.engine import values
from services.worker.engine.report import Commands, Progress, StepReport, TokenReport
from services.worker.scheduler.events import Outputs

_TOKENS, _REPORT, _COMMANDS = 0x54, 0x52, 0x43
"""First bytes; that of a pickle is 0x80."""
_HEAD = Struct("<B?6xIIqIIdd")  # that, has_work, rows, and the rest of the progress; a multiple of 8 bytes
_HANDLE, _INT = 8, 4  # bytes


def packed(message: object) -> bytes:
    """The message as bytes."""
    if isinstance(message, TokenReport):
        return _packed_tokens(message)
    if isinstance(message, StepReport):
        return bytes((_REPORT,)) + marshal.dumps(values.of_report(message))
    if isinstance(message, Commands):
        return bytes((_COMMANDS,)) + marshal.dumps(values.of_commands(message))
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def unpacked(body: bytes) -> object:
    """The message that was packed; its arrays are read-only."""
    kind = body[0]
    if kind == _TOKENS:
        return _unpacked_tokens(body)
    if kind == _REPORT:
        return values.report(marshal.loads(memoryview(body)[1:]))
    if kind == _COMMANDS:
        return values.commands(marshal.loads(memoryview(body)[1:]))
    return pickle.loads(body)


def _packed_tokens(report: TokenReport) -> bytes:
    outputs, progress = report.outputs, report.progress
    head = _HEAD.pack(
        _TOKENS,
        progress.has_work,
        len(outputs),
        0,
        progress.finished_steps,
        progress.batch_size,
        progress.step_tokens,
        progress.last_finished_s,
        progress.step_s,
    )
    return b"".join((head, outputs.handles.tobytes(), outputs.indices.tobytes(), outputs.tokens.tobytes()))


def _unpacked_tokens(body: bytes) -> TokenReport:
    _, has_work, rows, _, steps, batch_size, step_tokens, finished_s, step_s = _HEAD.unpack_from(body)
    indices = _HEAD.size + _HANDLE * rows
    outputs = Outputs(
        np.frombuffer(body, np.int64, rows, _HEAD.size),
        np.frombuffer(body, np.int32, rows, indices),
        np.frombuffer(body, np.int32, rows, indices + _INT * rows),
    )
    return TokenReport(outputs, Progress(steps, has_work, finished_s, batch_size, step_tokens, step_s))
