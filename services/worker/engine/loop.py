"""The engine's main loop: receive, plan, launch, settle, report."""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import NamedTuple

from services.worker.engine.base import CountsCopies, LoadedEngine, Pending
from services.worker.engine.grammars import Grammars, Outcome
from services.worker.engine.inbox import Inbox
from services.worker.engine.outbox import Outbox
from services.worker.engine.report import Commands, Progress, StepReport, TokenReport
from services.worker.scheduler.events import KVSnapshot
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import Step

RETRY_PLAN_S = 0.005  # work is there but may not run now (a batch request behind its gate): look again
STATE_S = 0.05  # the oldest that load and credits may be while steps bring only tokens
QUIET_S = 0.02  # nothing to do and nothing asked for so long: an idle moment, for the runner to improve


class _Launched(NamedTuple):
    step: Step
    pending: Pending


class EngineLoop:
    """Drives a scheduler and a runner until told to close, or until the pipe breaks (EOFError, OSError)."""

    def __init__(self, engine: LoadedEngine, settings: SchedulerSettings, connection: Connection) -> None:
        description = engine.description
        facts = ModelFacts(description.vocab_size, description.eos_ids, description.numerics_id)
        self._runner = engine.runner
        self._copies = engine.runner if isinstance(engine.runner, CountsCopies) else None
        self._scheduler = Scheduler(
            engine.runner.spec, settings, facts, engine.runner.capabilities, engine.prior
        )
        self._grammars = Grammars(engine.vocabulary)
        self._connection = connection
        self._inbox = Inbox(connection)
        self._in_flight: deque[_Launched] = deque()
        self._last_command = 0
        self._snapshot_wanted = False
        self._closing = False
        self._improvable = True
        self._going_since_s = 0.0
        """Since when there was no pause: a step costs the loop's work beside it, too."""
        self._state_told_s = 0.0
        self._progress = Progress(0, False, time.monotonic(), 0, 0, 0.0)

    def run(self) -> None:
        """Serve until closed."""
        with Outbox(self._connection) as outbox, closing(self._grammars):
            self._report(outbox)
            wait_s: float | None = None
            while not self._closing:
                news = self._receive(wait_s)
                if wait_s != 0.0:
                    self._going_since_s = time.monotonic()
                self._hear_grammars()
                launched = self._launch(outbox)
                settled = self._settle_if_due(launched)
                if not (launched or settled):
                    self._going_since_s = time.monotonic()
                if not (launched or self._in_flight):
                    self._scheduler.keep_nothing()
                if settled and not news and self._may_wait_to_tell_state():
                    self._report_tokens(outbox)
                elif news or settled or self._scheduler.has_news:
                    self._report(outbox)
                wait_s = self._may_wait_s(launched)

    def _receive(self, wait_s: float | None) -> bool:
        idle = wait_s is None and self._improvable
        received = False
        for commands in self._inbox.take(QUIET_S if idle else wait_s):
            self._obey(commands)
            received = True
        if idle and not received:
            self._improvable = self._runner.improve()
        return received

    def _obey(self, commands: Commands) -> None:
        now = time.monotonic()
        for request in commands.submits:
            if self._scheduler.add(request, now) and request.grammar is not None:
                self._grammars.begin(request)
        for handle, merge in commands.merges:
            self._scheduler.merge(handle, merge)
        for handle in commands.aborts:
            self._scheduler.abort(handle, now)
        if commands.drain:
            self._scheduler.drain()
        self._snapshot_wanted |= commands.kv_snapshot
        self._closing |= commands.close
        self._last_command = commands.last_number

    def _hear_grammars(self) -> None:
        for verdict in self._grammars.verdicts():
            match verdict.outcome:
                case Outcome.READY:
                    self._scheduler.mask_known(verdict.handle)
                case Outcome.COMPLETE:
                    self._scheduler.grammar_ends(verdict.handle, time.monotonic())
                case Outcome.FAILED:
                    self._scheduler.grammar_ends(verdict.handle, time.monotonic(), verdict.message)

    def _launch(self, outbox: Outbox) -> bool:
        step = self._scheduler.plan(time.monotonic())
        if step is not None:
            outbox.mark_busy()
            if step.constrained:
                step = replace(step, masks=self._grammars.masks(step.constrained))
            if not self._in_flight:  # a pause before it is no sign of a step that hangs, and no part of it
                began_s = max(self._progress.last_finished_s, self._going_since_s)
                self._progress = self._progress._replace(last_finished_s=began_s)
            self._in_flight.append(_Launched(step, self._runner.launch(step)))
        return step is not None

    def _settle_if_due(self, launched: bool) -> bool:
        allowed = self._runner.capabilities.run_ahead if launched else 0
        due = len(self._in_flight) > allowed
        if due:
            self._settle(self._in_flight.popleft())
        return due

    def _settle(self, launched: _Launched) -> None:
        sampled = launched.pending.result()
        now = time.monotonic()
        step, before = launched.step, self._progress
        seconds = now - before.last_finished_s
        self._scheduler.commit(step, sampled, now, seconds)
        for row, handle in step.constrained:
            self._grammars.advance(handle, int(sampled.tokens[row]))
        copied = 0 if self._copies is None else self._copies.host_to_device_bytes
        work = before.work.plus(step.cost, int(step.samples.sum()), seconds, copied)
        self._progress = Progress(
            before.finished_steps + 1, self._has_work, now, len(step.slots), len(step.tokens), seconds, work
        )

    def _may_wait_to_tell_state(self) -> bool:
        recent = self._progress.last_finished_s - self._state_told_s < STATE_S
        return recent and not self._snapshot_wanted and self._scheduler.only_tokens

    def _report_tokens(self, outbox: Outbox) -> None:
        if not self._scheduler.has_tokens:  # all of them wait for those of the next steps
            return
        progress = self._progress._replace(has_work=self._has_work)
        outbox.send_tokens(TokenReport(self._scheduler.take_tokens(), progress))

    def _report(self, outbox: Outbox) -> None:
        self._state_told_s = time.monotonic()
        events = self._scheduler.take_events()
        terminals = events.terminals  # a rejected request may share its handle with one that runs
        for handle in [each.handle for ends in (terminals.finished, terminals.returned) for each in ends]:
            self._grammars.forget(handle)
        outbox.send(
            StepReport(
                last_command=self._last_command,
                load=self._scheduler.load(),
                credits=self._scheduler.credits(),
                progress=self._progress._replace(has_work=self._has_work),
                step_model=self._scheduler.model.state(),
                outputs=events.outputs,
                terminals=events.terminals,
                kv=events.kv,
                kv_snapshot=self._take_snapshot(),
                served=events.served,
            )
        )

    def _take_snapshot(self) -> KVSnapshot | None:
        wanted, self._snapshot_wanted = self._snapshot_wanted, False
        return self._scheduler.kv_snapshot() if wanted else None

    @property
    def _has_work(self) -> bool:
        """Work of the runner: what only waits for a grammar does not make it look hung."""
        return self._scheduler.can_run or bool(self._in_flight)

    def _may_wait_s(self, launched: bool) -> float | None:
        if launched or self._in_flight or self._grammars.imminent:
            return 0.0
        return RETRY_PLAN_S if self._scheduler.has_work else None
