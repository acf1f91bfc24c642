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
from services.worker.scheduler.packed import Packed
from services.worker.scheduler.request import Request


@dataclass(slots=True, eq=False)
class Commands(Packed):
    """Engine inbox: all that was asked in one turn of the caller's event loop."""

    last_number: int = 0  # commands are numbered one by one
    submits: list[Request] = field(default_factory=list)
    aborts: list[int] = field(default_factory=list)  # handles; applied after the submits
    drain: bool = False  # return everything unfinished, reject what comes later
    kv_snapshot: bool = False
    close: bool = False


class Progress(NamedTuple):
    """Proof of work: `has_work` with an old `last_finished_s` means hung, whatever else still answers."""

    finished_steps: int
    has_work: bool
    last_finished_s: float  # monotonic seconds of the last finished step, or of a launch after idle time
    batch_size: int  # sequences in the last finished step
    step_tokens: int  # input tokens of the last finished step
    step_s: float  # duration of the last finished step


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepReport(Packed):
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
