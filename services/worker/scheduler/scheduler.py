"""The scheduler: add, abort, plan, commit. No phases: every request only has computed and wanted tokens.

add ──▶ waiting ──▶ resident ──▶ ended        plan: planner.py fills a draft, launched tokens count as
computed
          ▲            │                      commit: sampled ids are appended, full blocks sealed, ends found
          └─ preempted ┘
"""

from __future__ import annotations

import heapq
from dataclasses import replace

from services.worker.scheduler.ageing import Ageing
from services.worker.scheduler.blocks import BlockPool
from services.worker.scheduler.budget import PRIOR, StepModel, StepModelState
from services.worker.scheduler.draft import Draft
from services.worker.scheduler.events import (
    Credits,
    Events,
    KVSnapshot,
    Load,
    Outputs,
    Rejected,
    RejectReason,
)
from services.worker.scheduler.forecast import OutputForecast
from services.worker.scheduler.intake import Intake, ModelFacts
from services.worker.scheduler.launches import Launches
from services.worker.scheduler.ledger import Ledger
from services.worker.scheduler.occupancy import Occupancy
from services.worker.scheduler.planner import Planner
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.recent import RecentWork
from services.worker.scheduler.request import FinishReason, Merge, Request
from services.worker.scheduler.residents import Residents
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.steady import SteadyDecodes
from services.worker.scheduler.step import (
    NOT_FINITE,
    NOT_SAMPLED,
    Capabilities,
    KVSpec,
    Sampled,
    Step,
    StepCost,
)
from services.worker.scheduler.waiting import WaitingLine

_FAULTS = {
    NOT_FINITE: "the model gave no finite logits for this sequence",
    NOT_SAMPLED: "the engine chose no token for this sequence",
}


class Scheduler:
    """Continuous batching for one runner. Not thread-safe; `now` never decreases."""

    def __init__(
        self,
        spec: KVSpec,
        settings: SchedulerSettings,
        facts: ModelFacts,
        capabilities: Capabilities,
        prior: StepModelState = PRIOR,
        planner: type[Planner] = Planner,
    ) -> None:
        self.model = StepModel(prior)
        self._intake = Intake(spec, settings, facts, capabilities)
        self._pool = BlockPool(spec.num_blocks)
        self._residents = Residents(self._pool, spec.block_size, spec.max_seqs)
        self._waiting = WaitingLine()
        self._ageing = Ageing(settings)
        self._forecast = OutputForecast()
        self._ledger = Ledger()
        self._recent = RecentWork()
        self._unfinished: dict[int, Sequence] = {}  # by handle
        columns = planner is Planner  # another one may not plan decodes alone as that does
        self._launches = Launches(self._residents, self.model, columns=columns)
        self._planner = planner(
            settings,
            self._residents,
            self._waiting,
            self._pool,
            self.model,
            self._forecast,
            chunked=capabilities.chunked_prefill,
        )
        self._occupancy = Occupancy(
            settings,
            self.model,
            self._pool,
            self._residents,
            self._waiting,
            self._planner,
            self._unfinished,
        )
        self._deadlines: list[tuple[float, int]] = []
        self._begun: list[Sequence] = []  # had their first tokens in the step that is settled
        self._draining = False

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._unfinished)

    @property
    def has_news(self) -> bool:
        """Whether `take_events` would return anything of requests."""
        return not self._ledger.empty

    @property
    def can_run(self) -> bool:
        """Whether any request waits for steps, and not only for the mask of its grammar."""
        return any(sequence.masked for sequence in self._unfinished.values())

    def add(self, request: Request, now: float) -> bool:
        """Accept a request, or record why not; returns whether it was accepted."""
        rejected = self._refusal(request) or self._intake.fault(request)
        if rejected is not None:
            self._ledger.rejected(rejected)
            return False
        had_s = self._recent.of(request.tenant, now)
        sequence = self._intake.sequence(request, self.model, self._pool, had_s, now)
        if not self._ends_at_once(sequence, now):
            self._unfinished[request.handle] = sequence
            self._occupancy.came(sequence)
            self._waiting.push(sequence)
            self._ageing.watch(sequence)
            if request.deadline_s is not None:
                heapq.heappush(self._deadlines, (request.deadline_s, request.handle))
        return True

    def mask_known(self, handle: int) -> None:
        """Its grammar has said what the next token of a request may be. Unknown handles are ignored."""
        sequence = self._unfinished.get(handle)
        if sequence is not None:
            sequence.masked = True

    def grammar_ends(self, handle: int, now: float, failure: str | None = None) -> None:
        """End a request whose output matches its grammar whole, or cannot any more: `failure` says why."""
        sequence = self._unfinished.get(handle)
        if sequence is not None:
            reason = FinishReason.EOS if failure is None else FinishReason.GRAMMAR
            self._finish(sequence, reason, now, message=failure or "")

    def abort(self, handle: int, now: float) -> None:
        """End a request as CANCELLED: in no step planned from now on. Unknown handles are ignored."""
        sequence = self._unfinished.get(handle)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED, now)

    def drain(self) -> None:
        """Return everything unfinished, and reject what comes later."""
        self._draining = True
        for sequence in list(self._unfinished.values()):
            self._forget(sequence)
            self._ledger.returned(sequence)

    def plan(self, now: float) -> Step | None:
        """The next step, whose tokens count as computed from now on; None when nothing can or may run."""
        self._expire(now)
        if self._ageing.is_due(now):
            self._residents.dissolve()
            for risen in self._ageing.rise(now):
                self._waiting.moved_up(risen)
        steady = self._residents.steady
        if steady is not None and self._may_go_on(steady):
            self._planner.decodes_alone(steady.next_cost, steady.target_s, now)
            return self._launches.launch_steady(steady, now)
        draft = self._planner.draft(now)
        return self._launch(draft, now) if draft else None

    def commit(self, step: Step, sampled: Sampled, now: float, seconds: float) -> None:
        """Settle the oldest launched step, which took `seconds`."""
        sequences = self._launches.settle(step)
        self.model.observe(step.cost, seconds)
        self._pool.complete(step.number)
        steady = self._residents.steady
        if steady is not None and sequences is steady.sequences:
            if steady.settle(sampled):
                self._ledger.tokens(step, sampled, range(len(sequences)), sequences, now)
                self._ledger.tell_due(now, self._launches.next_ends_in_s(seconds))
                return
            self._residents.dissolve()
        heard = self._settle(step, sampled, sequences, now)
        self._ledger.tokens(step, sampled, heard, sequences, now)
        self._ledger.tell_due(now, self._launches.next_ends_in_s(seconds))
        for sequence in self._begun:
            if not sequence.finished:
                self._ledger.merge(sequence, sequence.request.merge)
        self._begun.clear()

    @property
    def only_tokens(self) -> bool:
        """Whether requests have new tokens and nothing else, and none waits for its first."""
        return self._ledger.only_tokens and not (self._waiting or self._residents.prefilling)

    @property
    def has_tokens(self) -> bool:
        """Whether there are new tokens to be told now, and not only such as may wait for others."""
        return self._ledger.has_tokens

    def keep_nothing(self) -> None:
        """Tokens wait for no others: no step follows soon."""
        self._ledger.tell_all()

    def merge(self, handle: int, merge: Merge | None) -> None:
        """How tokens of a request go together from now on. Unknown handles are ignored."""
        sequence = self._unfinished.get(handle)
        if sequence is not None:
            sequence.request = replace(sequence.request, merge=merge)
            if sequence.first_token_s is not None:
                self._ledger.merge(sequence, merge)

    def take_tokens(self) -> Outputs:
        """The new tokens; what else happened is for `take_events`."""
        return self._ledger.take_tokens()

    def take_events(self) -> Events:
        """Everything that happened since the last call."""
        return self._ledger.take(self._pool.take_events())

    def kv_snapshot(self) -> KVSnapshot:
        """All reusable blocks."""
        return self._pool.snapshot()

    def load(self) -> Load:
        """How full it is."""
        return self._occupancy.load()

    def credits(self) -> Credits:
        """What could be started beyond all that is there."""
        return self._occupancy.credits()

    def check(self) -> None:
        """Raise AssertionError when blocks or requests are out of balance; for tests and idle times."""
        self._pool.check()
        assert len(self._unfinished) == len(self._residents) + len(self._waiting)
        if not self._unfinished and not self._launches:
            assert self._pool.statistics().held == 0, "blocks are held by nobody"

    @property
    def _sequences(self) -> dict[int, Sequence]:
        """All that are unfinished, as they are now: for who looks on."""
        self._residents.dissolve()
        return self._unfinished

    def _refusal(self, request: Request) -> Rejected | None:
        if self._draining:
            return Rejected(request.handle, RejectReason.DRAINING, "the engine is draining")
        if request.handle in self._unfinished:
            return Rejected(request.handle, RejectReason.DUPLICATE_HANDLE, "the handle is in use")
        return None

    def _ends_at_once(self, sequence: Sequence, now: float) -> bool:
        """A resumed request may have had all its output before it came here."""
        last = sequence.ids[-1]
        if sequence.outputs and last in sequence.stop_ids:
            self._ledger.finished(sequence, sequence.stop_reason(last), now, last, "")
        elif sequence.outputs >= sequence.max_outputs:
            self._ledger.finished(sequence, FinishReason.LENGTH, now, None, "")
        else:
            return False
        return True

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            due_s, handle = heapq.heappop(self._deadlines)
            sequence = self._unfinished.get(handle)
            if sequence is not None and sequence.request.deadline_s == due_s:
                self._finish(sequence, FinishReason.DEADLINE, now)

    def _launch(self, draft: Draft, now: float) -> Step:
        for sequence, take in draft.chunks.items():
            self._count_prompt_tokens(sequence, take)
            self._recent.add(sequence.tenant, self._chunk_s(sequence, take), now)
            if sequence.first_step_s is None:
                sequence.first_step_s = now
        return self._launches.launch(draft, now)

    def _may_go_on(self, steady: SteadyDecodes) -> bool:
        others = self._waiting or self._residents.prefilling
        return not others and steady.may_go_on(self._pool.available)

    def _chunk_s(self, sequence: Sequence, take: int) -> float:
        return self.model.predict(StepCost(0.0, take, take * (sequence.computed + take / 2.0), 0.0, 0.0))

    def _count_prompt_tokens(self, sequence: Sequence, take: int) -> None:
        start = max(sequence.computed, sequence.was_computed)  # nobody pays for a preemption
        fresh = min(sequence.computed + take, sequence.prompt_len) - start
        if fresh > 0:
            self._ledger.served(sequence.tenant, fresh, 0)

    def _settle(self, step: Step, sampled: Sampled, sequences: list[Sequence], now: float) -> list[int]:
        """Takes note of what was computed and chosen; rows whose tokens are output.

        One loop without calls: with 256 sequences it is the longest part of what a step costs here.
        """
        heard = []
        table = zip(
            sequences, step.query_lens.tolist(), step.samples.tolist(), sampled.tokens.tolist(), strict=True
        )
        for row, (sequence, take, samples, token) in enumerate(table):
            if sequence.finished:
                continue
            if sequence.entered_step <= step.number:
                settled = sequence.settled = sequence.settled + take
                if settled >= sequence.full_at:
                    self._residents.seal(sequence)
            if not samples:
                continue
            sequence.pending -= 1
            if token < 0:
                self._finish(sequence, FinishReason.ERROR, now, message=_FAULTS[token])
                continue
            heard.append(row)
            sequence.ids.append(token)
            outputs = sequence.outputs = sequence.outputs + 1
            if sequence.first_token_s is None:
                sequence.first_token_s = now
                if sequence.request.merge is not None:
                    self._begun.append(sequence)
            if token in sequence.stop_ids:
                self._finish(sequence, sequence.stop_reason(token), now, stop_token_id=token)
            elif outputs >= sequence.max_outputs:
                self._finish(sequence, FinishReason.LENGTH, now)
        return heard

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        *,
        stop_token_id: int | None = None,
        message: str = "",
    ) -> None:
        self._forget(sequence)
        self._ledger.finished(sequence, reason, now, stop_token_id, message)
        if reason in (FinishReason.EOS, FinishReason.STOP_TOKEN, FinishReason.LENGTH):
            self._forecast.observe(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._unfinished[sequence.handle]
        self._occupancy.left(sequence)
        sequence.finished = True
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            self._residents.leave(sequence)
