"""Who is in the next step: policy A3 of research/algorithms.md.

    1  foreground decodes, all of them       4  gate: may background prompts be computed beside the decodes?
    2  foreground prompts, within the target 5  background decodes, while the step stays short
    3  if there were any, nothing else       6  background prompts, while the step stays short

Of 2, prompts that alone take far longer than a first token may have half while others wait.
Short: not much longer than foreground decodes alone, so that neither readers nor arrivals notice batch work.
Background is BATCH that has not aged, foreground everything else. Decodes never wait for prompts: prompts
get the time that decodes leave of the tightest inter-token target. Slots and blocks are in residents.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from services.worker.scheduler.blocks import BlockPool
from services.worker.scheduler.budget import StepModel
from services.worker.scheduler.draft import Draft
from services.worker.scheduler.forecast import OutputForecast
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.residents import Residents
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.step import StepCost
from services.worker.scheduler.waiting import WaitingLine

_UNSPLIT = 1.25  # a prompt whose rest exceeds the budget by no more than this is not split
_ONE_DECODE = StepCost(1.0, 1.0, 0.0, 1.0, 1.0)


class Planner:
    """Fills drafts from residents and the waiting line."""

    def __init__(
        self,
        settings: SchedulerSettings,
        residents: Residents,
        waiting: WaitingLine,
        pool: BlockPool,
        model: StepModel,
        forecast: OutputForecast,
        *,
        chunked: bool,
    ) -> None:
        self._settings = settings
        self._residents = residents
        self._waiting = waiting
        self._pool = pool
        self._model = model
        self._forecast = forecast
        self._chunked = chunked
        self._free_slots_kept = min(settings.batch_free_slots, residents.free_slots // 4)
        self._foreground_seen_s = float("-inf")
        self._lengthy_first = False  # they had nothing of the last step
        self.prompt_room_s = settings.idle_step_s
        """What a step has for prompts beside the foreground decodes of the last draft, in seconds."""

    def draft(self, now: float) -> Draft:
        """The rows of the next step; none when nothing may or can run now."""
        draft = Draft()
        foreground, background = self._decodes()
        self._join(draft, foreground)
        decode_s = self._model.predict(draft.cost)
        target_s = min({s.tpot_s for s in foreground if s.tpot_s is not None}, default=None)
        until_s = self._until_s(target_s, decode_s)
        prompts_until_s = self._leave_room(until_s, decode_s)
        self._add_prompts(draft, prompts_until_s, now, background=False)
        if foreground or draft:
            self._foreground_seen_s = now
        if draft.chunk_tokens == 0:
            gated = self._is_gated(target_s, decode_s)
            if target_s is not None:
                until_s = self._batch_until_s(target_s, decode_s)
            self._add_background(draft, background, until_s, now, gated=gated)
        return draft

    def decodes_alone(self, cost: StepCost, target_s: float | None, now: float) -> None:
        """Takes note of a step of foreground decodes while nothing else is there."""
        decode_s = self._model.predict(cost)
        self._leave_room(self._until_s(target_s, decode_s), decode_s)
        self._foreground_seen_s = now

    def _leave_room(self, until_s: float, decode_s: float) -> float:
        """How long prompts may make the step."""
        prompts_until_s = max(until_s, self._settings.stretch * decode_s)
        self.prompt_room_s = prompts_until_s - decode_s
        return prompts_until_s

    def _decodes(self) -> tuple[list[Sequence], list[Sequence]]:
        foreground: list[Sequence] = []
        background: list[Sequence] = []
        for sequence in self._residents.decoding.values():
            if sequence.masked and sequence.outputs + sequence.pending < sequence.max_outputs:
                (background if sequence.background else foreground).append(sequence)
        return foreground, background

    def _until_s(self, target_s: float | None, decode_s: float) -> float:
        """How long the step may take. Without a target an arrival must not wait long, on this machine."""
        if target_s is not None:
            return target_s
        return max(self._settings.idle_step_s, 4.0 * self._model.predict(_ONE_DECODE), decode_s)

    def _batch_until_s(self, target_s: float, decode_s: float) -> float:
        """How long batch work may make a step that somebody reads along with."""
        return min(target_s, self._settings.batch_stretch * decode_s)

    def _is_gated(self, target_s: float | None, decode_s: float) -> bool:
        return target_s is not None and decode_s > self._settings.gate * target_s

    def _join(self, draft: Draft, decodes: list[Sequence]) -> None:
        if self._pool.available < len(decodes):
            decodes.sort(key=lambda sequence: sequence.place)
        draft.add_decodes(decodes)
        for sequence in [each for each in decodes if each.computed == each.capacity]:
            if not self._make_room(draft, sequence, sequence.computed + 1):
                draft.drop(sequence)

    def _add_background(
        self, draft: Draft, decodes: list[Sequence], until_s: float, now: float, *, gated: bool
    ) -> None:
        for sequence in sorted(decodes, key=lambda sequence: sequence.place):
            full = self._model.predict(draft.cost) > self._settings.batch_fill * until_s
            if full and draft:
                break
            self._join(draft, [sequence])
        if not gated:
            self._add_prompts(draft, until_s, now, background=True)

    def _add_prompts(self, draft: Draft, until_s: float, now: float, *, background: bool) -> None:
        """Chunks while time is left; lengthy prompts and the others have half each if both want it."""
        if background or not self._someone_is_lengthy():
            self._fill(draft, until_s, now, background)
            return
        half_s, first = (self._model.predict(draft.cost) + until_s) / 2.0, self._lengthy_first
        self._fill(draft, half_s, now, background, lengthy=first)
        self._fill(draft, until_s, now, background, lengthy=not first)
        self._lengthy_first = not any(each.lengthy for each in draft.chunks)

    def _someone_is_lengthy(self) -> bool:
        waits = self._waiting.lengthy_tokens > 0
        return waits or any(each.lengthy for each in self._residents.prefilling.values())

    def _fill(
        self, draft: Draft, until_s: float, now: float, background: bool, *, lengthy: bool | None = None
    ) -> None:
        """In the order of places, residents and who can enter; `lengthy`: these alone, or the others."""
        started = deque(self._started(background, lengthy))
        admitting = not (background and draft.preempted)
        while draft.chunk_tokens < self._settings.max_chunk:
            head = self._head(background, lengthy) if admitting else None
            if head is not None and not (started and started[0].place < head.place):
                if self._allowed(draft, head, until_s) <= 0:
                    return
                admitting = self._admit(draft, head, now)
                sequence = head if admitting else None
            else:
                sequence = started.popleft() if started else None
                if sequence is None:
                    return
            if sequence is not None and not self._add_chunk(draft, sequence, until_s):
                return

    def _started(self, background: bool, lengthy: bool | None) -> Iterable[Sequence]:
        chosen = (
            each
            for each in self._residents.prefilling.values()
            if each.background == background and lengthy in (None, each.lengthy)
        )
        return sorted(chosen, key=lambda sequence: sequence.place)

    def _head(self, background: bool, lengthy: bool | None) -> Sequence | None:
        head = self._waiting.head(lengthy)
        return head if head is not None and head.background == background else None

    def _add_chunk(self, draft: Draft, sequence: Sequence, until_s: float) -> bool:
        """Whether time may be left for others."""
        if sequence.slot is None:
            return True  # it had to leave for one before it
        allowed = self._allowed(draft, sequence, until_s)
        wanted = sequence.computable if self._chunked or sequence.masked else 0
        if not wanted:
            return True
        whole = wanted <= _UNSPLIT * allowed or not self._chunked
        take = wanted if whole else allowed
        if self._chunked:
            take = min(take, self._settings.max_chunk - draft.chunk_tokens)
        if take <= 0:
            return False
        if self._make_room(draft, sequence, sequence.computed + take):
            draft.add_chunk(sequence, take)
        return whole

    def _allowed(self, draft: Draft, sequence: Sequence, until_s: float) -> int:
        """Prompt tokens that fit; some progress at least for the foreground, and when nothing else runs."""
        left_s = until_s - self._model.predict(draft.cost)
        allowed = self._model.tokens_within(left_s, sequence.computed)
        if not (sequence.background and draft):
            allowed = max(allowed, self._settings.min_chunk - draft.chunk_tokens)
        return min(allowed, self._settings.max_chunk - draft.chunk_tokens)

    def _admit(self, draft: Draft, sequence: Sequence, now: float) -> bool:
        if sequence.pending:  # preempted a moment ago: its last token is still on its way
            return False
        if sequence.background and not self._batch_may_enter(sequence, now):
            return False
        if not self._residents.free_slots and not self._has_victim(sequence):
            return False
        short = self._blocks_short(sequence)
        if (short > 0 or not self._residents.free_slots) and not self._preempt_for(draft, sequence, short):
            return False
        self._waiting.remove(sequence)
        self._residents.admit(sequence, sequence.length + self._forecast.remaining(sequence))
        return True

    def _has_victim(self, sequence: Sequence) -> bool:
        tier = sequence.place.tier
        return max([resident.place.tier for resident in self._residents]) > tier

    def _blocks_short(self, sequence: Sequence) -> int:
        """Blocks missing for it and for the output that residents are expected to have; <= 0: none."""
        found = self._pool.find(sequence.reusable_links())
        expected = self._forecast.remaining(sequence) if len(self._residents) else 1
        need = self._residents.blocks_for(sequence.length + expected) - len(found)
        return need + self._residents.promised - (self._pool.available - self._pool.count_cached(found))

    def _batch_may_enter(self, sequence: Sequence, now: float) -> bool:
        if self._residents.free_slots <= self._free_slots_kept:
            return False
        held = sum(len(resident.blocks) for resident in self._residents if resident.background)
        quiet = now - self._foreground_seen_s > self._settings.quiet_s
        share = self._settings.batch_kv_share_quiet if quiet else self._settings.batch_kv_share
        need = self._residents.blocks_for(sequence.length + self._forecast.remaining(sequence))
        return held == 0 or held + need <= share * self._pool.statistics().total

    def _preempt_for(self, draft: Draft, sequence: Sequence, short: int) -> bool:
        """Make a slot and `short` blocks free at the cost of lower tiers; False: not yet, or not at all."""
        victims: list[Sequence] = []
        freed = self._pool.returning
        for victim in sorted(self._residents, key=_victim_order, reverse=True):
            if (
                freed >= short and (victims or self._residents.free_slots)
            ) or victim.place.tier <= sequence.place.tier:
                break
            if victim.preemptions < self._settings.max_preemptions:
                victims.append(victim)
                freed += self._pool.count_exclusive(victim.blocks)
        if freed < short or not (victims or self._residents.free_slots):
            return False
        for victim in victims:
            self._preempt(draft, victim)
        return self._blocks_short(sequence) <= 0

    def _make_room(self, draft: Draft, sequence: Sequence, tokens: int) -> bool:
        """Blocks for `tokens` in all, at the cost of whoever stands last; that may be the sequence itself."""
        if sequence.slot is None:
            return False
        while not self._residents.grow(sequence, tokens):
            short = self._residents.blocks_for(tokens) - len(sequence.blocks) - self._pool.available
            if self._pool.returning >= short:
                return False  # they come back when the launched step completes
            victim = max(self._residents, key=_victim_order)
            self._preempt(draft, victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, draft: Draft, victim: Sequence) -> None:
        draft.drop(victim)
        draft.preempted = True
        self._residents.leave(victim)
        victim.preemptions += 1
        victim.backlog = victim.length
        self._waiting.push(victim)


def _victim_order(sequence: Sequence) -> tuple[int, float, int]:
    """The largest goes first: the lowest tier; in it the least computed, or the last in line."""
    tier, due_s, handle = sequence.place
    return (tier, -sequence.computed if sequence.background else due_s, handle)
