"""What crosses the engine's pipe as bytes: pickles, and a step's tokens as a head with columns after it.

Of the latter there is one every few milliseconds; a pickle of it, whose names are looked up in modules each
time, would be a tenth of what a worker does for a step.
"""

from __future__ import annotations

import pickle
from struct import Struct

import numpy as np

from services.worker.engine.report import Progress, TokenReport
from services.worker.scheduler.events import Outputs

_TOKENS = 0x54
"""The first byte of a TokenReport; that of a pickle is 0x80."""
_HEAD = Struct("<B?6xIIqIIdd")  # that, has_work, rows, and the rest of the progress; a multiple of 8 bytes
_HANDLE, _INT = 8, 4  # bytes


def packed(message: object) -> bytes:
    """The message as bytes; `Connection.recv` reads all but TokenReports, too."""
    if isinstance(message, TokenReport):
        return _packed_tokens(message)
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def unpacked(body: bytes) -> object:
    """The message that was packed; its arrays are read-only."""
    return _unpacked_tokens(body) if body[0] == _TOKENS else pickle.loads(body)


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
