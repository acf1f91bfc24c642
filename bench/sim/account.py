"""Load and credit of one session, as services/router/sessions/account.py keeps them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.sim.frame import Frame
from bench.sim.request import NUMERICS, Story
from bench.sim.worker import SimWorker
from services.router.policy import Cost, WorkerView
from services.router.policy.speed import StepModel
from services.worker.session.credits import Room

MODEL = "model"
BLOCK_TOKENS = 64
PAUSE_S = 0.05  # after a worker had no credit after all


class _Open(NamedTuple):
    command: int
    cost: Cost
    foreground: bool


@dataclass(slots=True)
class _Sum:
    prefill_tokens: int = 0
    sequences: int = 0
    kv_blocks: int = 0

    def add(self, cost: Cost, sign: int) -> None:
        self.prefill_tokens += sign * cost.prefill_tokens
        self.sequences += sign
        self.kv_blocks += sign * cost.kv_blocks

    def left(self, room: Room) -> Cost:
        return Cost(
            room.prefill_tokens - self.prefill_tokens,
            room.sequences - self.sequences,
            room.kv_blocks - self.kv_blocks,
        )


@dataclass(slots=True)
class Account:
    """One worker as its router holds it."""

    worker: SimWorker
    heard: int = 0
    gone: bool = False
    stories: dict[int, Story] = field(default_factory=dict)  # by attempt
    _frame: Frame | None = None
    _commands: int = 0
    _open: deque[_Open] = field(default_factory=deque)  # submissions that no report covers
    _all: _Sum = field(default_factory=_Sum)
    _foreground: _Sum = field(default_factory=_Sum)
    _paused_until: float = 0.0

    def command(self) -> int:
        """The number of a new command."""
        self._commands += 1
        return self._commands

    def book(self, cost: Cost, *, foreground: bool) -> int:
        """Notes a submission; its command's number."""
        number = self.command()
        self._count(_Open(number, cost, foreground), 1)
        return number

    def reported(self, frame: Frame) -> None:
        """Takes over a frame, which settles what it acknowledges."""
        self._frame, self.heard = frame, frame.number
        while self._open and self._open[0].command <= frame.acknowledged_command:
            self._count(self._open[0], -1)

    def pause(self, now: float) -> None:
        """It had no credit after all."""
        self._paused_until = now + PAUSE_S

    def view(self, now: float) -> WorkerView:
        """The worker at this moment, as the scheduler sees it."""
        assert self._frame is not None
        frame, load, spec = self._frame, self._frame.load, self.worker.device.spec
        return WorkerView(
            key=self.worker.key,
            model=MODEL,
            ready=not self.gone and now >= self._paused_until,
            credit=self._all.left(frame.credit.all),
            sequences=max(load.running + load.waiting + len(self._open), len(self.stories)),
            waiting_tokens=load.waiting_uncached_tokens + self._all.prefill_tokens,
            batch_sequences=load.batch_requests + self._all.sequences - self._foreground.sequences,
            batch_waiting_tokens=load.batch_uncached_tokens
            + self._all.prefill_tokens
            - self._foreground.prefill_tokens,
            max_sequences=spec.max_seqs,
            max_tokens=spec.max_len,
            total_blocks=spec.num_blocks,
            numerics=NUMERICS,
            step_model=StepModel(*frame.step_model.coefficients, frame.step_model.quantile),
            free_blocks=max(0, load.blocks_free + load.blocks_cached - self._all.kv_blocks),
            running_context=load.blocks_held * BLOCK_TOKENS,
        )

    def _count(self, open_: _Open, sign: int) -> None:
        if sign > 0:
            self._open.append(open_)
        else:
            self._open.popleft()
        self._all.add(open_.cost, sign)
        if open_.foreground:
            self._foreground.add(open_.cost, sign)
