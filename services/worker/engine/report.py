"""The two messages between the engine and whoever serves it: one in, one out, a step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.events import (
    NO_KV_EVENTS,
    NO_OUTPUTS,
    NO_TERMINALS,
    Credits,
    KVEvents,
    KVSnapshot,
    Load,
    Outputs,
    Served,
    Terminals,
)
from services.worker.scheduler.request import Merge, Request
from services.worker.scheduler.step import StepCost


@dataclass(slots=True, eq=False)
class Commands:
    """Engine inbox: all that was asked in one turn of the caller's event loop."""

    last_number: int = 0  # commands are numbered one by one
    submits: list[Request] = field(default_factory=list)
    aborts: list[int] = field(default_factory=list)  # handles; applied after the submits
    merges: list[tuple[int, Merge | None]] = field(default_factory=list)  # likewise: of unfinished requests
    drain: bool = False  # return everything unfinished, reject what comes later
    kv_snapshot: bool = False
    close: bool = False


class Work(NamedTuple):
    """What all finished steps came to, since the engine began."""

    steps: int = 0
    busy_s: float = 0.0  # seconds of steps, the loop's work from one to the next included
    tokens: float = 0.0  # input tokens
    outputs: float = 0.0  # rows that sampled
    pairs: float = 0.0  # of a query and a token that it read
    decode_reads: float = 0.0  # tokens of KV that decodes read
    host_to_device_bytes: float = 0.0  # copied; 0 of an engine that has no device of its own

    def plus(self, cost: StepCost, outputs: int, seconds: float, copied: int) -> Work:
        """With one more step; `copied`: the runner's total."""
        return Work(
            self.steps + 1,
            self.busy_s + seconds,
            self.tokens + cost.tokens,
            self.outputs + outputs,
            self.pairs + cost.attention + cost.context,
            self.decode_reads + cost.context,
            copied,
        )

    def since(self, before: Work) -> Work:
        """What was done between."""
        steps = self.steps - before.steps
        return Work(steps, *(new - old for old, new in zip(before[1:], self[1:], strict=True)))


class Progress(NamedTuple):
    """Proof of work: `has_work` with an old `last_finished_s` means hung, whatever else still answers."""

    finished_steps: int
    has_work: bool
    last_finished_s: float  # monotonic seconds of the last finished step, or of the end of a pause
    batch_size: int  # sequences in the last finished step
    step_tokens: int  # input tokens of the last finished step
    step_s: float  # what the last one took, from the end of the one before unless the loop paused
    work: Work = Work()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepReport:
    """Engine outbox: everything new since the report before; a heartbeat is one without news.

    Sent after each step, and at least every 200 ms, also while a step runs and when idle.
    """

    last_command: int  # number of the last command that `load` and `credits` take into account
    load: Load
    credits: Credits
    progress: Progress
    step_model: StepModelState
    outputs: Outputs = NO_OUTPUTS
    terminals: Terminals = NO_TERMINALS
    kv: KVEvents = NO_KV_EVENTS
    kv_snapshot: KVSnapshot | None = None
    served: dict[bytes, Served] = field(default_factory=dict)  # by tenant tag, since the last report

    def without_news(self) -> Self:
        """The state alone: what a heartbeat says."""
        return replace(
            self, outputs=NO_OUTPUTS, terminals=NO_TERMINALS, kv=NO_KV_EVENTS, kv_snapshot=None, served={}
        )

    def then(self, step: TokenReport) -> Self:
        """The report after this one, of a step that brought only tokens."""
        progress = step.progress._replace(work=self.progress.work)
        return replace(self.without_news(), outputs=step.outputs, progress=progress)


class TokenReport(NamedTuple):
    """Engine outbox after a step that brought only tokens; a tenth of a StepReport.

    What else such a step changed is told with the next StepReport, 50 ms after the one before at the latest,
    or with the first step after that. It has a form of its own on the way: see `wire`.
    """

    outputs: Outputs
    progress: Progress  # without its work
