"""What steps chose, on its way to the host: a copy beside the next step's work, read when it is there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from services.worker.engine.torch.cuda.arguments import LogprobsOut
from services.worker.engine.torch.cuda.device import Device, Stream
from services.worker.engine.torch.cuda.inputs import WORD
from services.worker.engine.torch.cuda.staging import Piece, PinnedRing, copy
from services.worker.scheduler.step import NOT_SAMPLED, Bool, Float32, Int32, Logprobs, Sampled


class Asked(NamedTuple):
    """Rows that want log-probabilities, and how many."""

    rows: Int32  # [m] of the step
    best: int  # at least 1


class Form(NamedTuple):
    """Where the parts of a result lie, in words; of fixed places, so that they are aligned."""

    slots: int
    rows: int
    asked: int = 0
    best: int = 0

    @property
    def top(self) -> tuple[int, int]:
        return 2 * self.slots, 2 * self.slots + self.asked * self.best

    @property
    def top_ids(self) -> tuple[int, int]:
        start = -(-self.top[1] // 4) * 4
        return start, start + self.asked * self.best

    @property
    def size(self) -> int:
        return self.top_ids[1] if self.asked else self.rows


class Results:
    """A ring as deep as there are steps under way, on the device and in pinned memory."""

    def __init__(self, device: Device, slots: int, max_logprobs: int, depth: int) -> None:
        slots = -(-slots // 4) * 4
        words = Form(slots, slots, slots, max(1, max_logprobs)).size
        self._slots = slots
        self._stream = device.stream()
        self._ring = PinnedRing(device, words * WORD, depth)
        self._memory = [device.zeros((words,), torch.int32) for _ in range(depth)]
        self._computed = [device.event() for _ in range(depth)]
        self._under_way = 0
        self._turn = 0

    def begin(self, rows: int, asked: Asked | None) -> Result:
        """Room for the result of the step that is about to be launched."""
        assert self._under_way < len(self._memory), "more steps are under way than the engine may run ahead"
        self._under_way += 1
        form = Form(self._slots, rows, *(() if asked is None else (len(asked.rows), asked.best)))
        turn, self._turn = self._turn, (self._turn + 1) % len(self._memory)
        return Result(self, form, self._memory[turn], self._ring.take(), turn)

    def send(self, result: Result, compute: Stream) -> None:
        """Copy to the host what the work enqueued in `compute` so far leaves in the result."""
        event, size = self._computed[result.turn], result.form.size * WORD
        compute.record(event)
        self._stream.follow(event)
        source, target = result.memory.view(torch.uint8)[:size], result.piece.memory[:size]
        self._stream.run(lambda: copy(target, source))
        self._stream.record(result.piece.copied)

    def read(self, result: Result) -> Int32:
        """The words, waited for; a copy: the memory is another step's from now on."""
        result.piece.copied.wait()
        self._under_way -= 1
        return result.piece.host.view(np.int32)[: result.form.size].copy()


class Result:
    """One step's result, on the device."""

    def __init__(self, ring: Results, form: Form, memory: torch.Tensor, piece: Piece, turn: int) -> None:
        self.ring = ring
        self.form = form
        self.memory = memory  # int32 words
        self.piece = piece
        self.turn = turn

    @property
    def tokens(self) -> torch.Tensor:
        """int32 [rows]"""
        return self.memory[: self.form.rows]

    @property
    def logprobs(self) -> LogprobsOut:
        form, shape = self.form, (self.form.asked, self.form.best)
        numbers = self.memory.view(torch.float32)
        return LogprobsOut(
            chosen=numbers[form.slots : form.slots + form.asked],
            top=numbers[slice(*form.top)].view(shape),
            top_ids=self.memory[slice(*form.top_ids)].view(shape),
        )


class CudaPending:
    """A step that is enqueued."""

    def __init__(self, result: Result, samples: Bool, asked: Asked | None) -> None:
        self._result = result
        self._samples = samples  # [rows]
        self._asked = asked

    def result(self) -> Sampled:
        """Wait for the step."""
        words = self._result.ring.read(self._result)
        tokens = np.where(self._samples, words[: self._result.form.rows], np.int32(NOT_SAMPLED))
        return Sampled(tokens, None if self._asked is None else self._logprobs(words, self._asked))

    def _logprobs(self, words: Int32, asked: Asked) -> Logprobs:
        form = self._result.form
        numbers: Float32 = words.view(np.float32)
        shape = (form.asked, form.best)
        return Logprobs(
            asked.rows,
            numbers[form.slots : form.slots + form.asked],
            words[slice(*form.top_ids)].reshape(shape),
            numbers[slice(*form.top)].reshape(shape),
        )
