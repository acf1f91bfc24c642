"""Which worker takes a request.

    open   workers with credit for it                    warm   workers that keep most of its prompt
    1. a warm worker that is open and not overloaded; credit for what the prompt does not share suffices
    2. wait a little for one that is closed: longer where KV is scarce, so that not everybody keeps everything
    3. any open worker; of a prompt whose keepers are overloaded one that is not, with KV to spare for a copy
    among these the least  (queued + own uncached prefill seconds) × (in flight + 1)  in calibrated terms

Choice and booking belong in one turn: between `choose` and `book` nothing else may happen.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from services.router.policy.classify import LatencyClass
from services.router.policy.fleet import Fleet
from services.router.policy.kinds import MOST, Limits
from services.router.policy.placement_settings import PlacementSettings
from services.router.policy.scores import Scores, cached_tokens, own_tokens
from services.router.policy.speed import Floats, Mask, Speeds
from services.router.policy.spread import Hits
from services.router.policy.ticket import Cost, Digests, Ticket
from services.router.policy.worker import BLOCK_TOKENS

_WAIT_WEIGHT = 0.05
_LONGEST_WAIT_S = 60.0
_AS_SOON = 1.25
_SCARCE = 0.25
"""Of a worker's blocks: with fewer to take, a second copy of a prefix displaces other work."""
_LENGTHY_S = 1.0
_QUIET_SHARE = 0.5
"""Prompts of so many seconds go only where less than this part of that waits: one after the other."""


class Choice(NamedTuple):
    """Where a request goes, or that it waits."""

    worker: str | None
    position: int = -1
    cached_tokens: int = 0
    """Of the prompt, on the chosen worker."""
    wait_until_s: float | None = None
    """When it would take a cold worker instead of waiting for a closed warm one."""
    cold: bool = True
    """Less than `warm_share` is cached on the chosen worker."""

    def cost(self, asked: Cost) -> Cost:
        """What the request takes there: prompt tokens that are cached need no computing."""
        return _less(asked, self.cached_tokens)


NOBODY = Choice(None)


class Placement:
    """Chooses workers; remembers recent waits, turns and repeated prefixes."""

    def __init__(self, settings: PlacementSettings | None = None) -> None:
        self.settings = settings or PlacementSettings()
        self.recent_wait_s = dict.fromkeys(LatencyClass, 0.0)
        """Moving averages of how long dispatched requests had waited: long waits of batch work make nobody
        else patient."""
        self._scores = Scores(self.settings)
        self._speeds: Speeds | None = None
        self._fastest_s = (inf, inf)  # of a prompt token, and of attention to one before it, at these speeds
        self._limits = Limits(self.settings.short_slice, self.settings.warm_queue_s)

    def choose(
        self, ticket: Ticket, fleet: Fleet, hits: Hits, now: float, head_wait_s: float | None = None
    ) -> Choice:
        """The worker to take now, or none.

        Args:
            hits: blocks that each worker keeps of the prompt, as `fleet.hits` says. [positions]
            head_wait_s: how long the first request of the queue has waited, when this one is not the first;
                infinite for one that may wait for a warm worker as long as any may.
        """
        able = self._able(ticket, fleet)
        takers = self._takers(able, hits, ticket, fleet)
        if ticket.preferred_labels:
            takers = _preferring(takers, fleet.labelled(ticket.preferred_labels, frozenset()))
            able = able & takers if np.count_nonzero(takers) else able
        keepers = self._keepers(able, hits, ticket)
        if keepers is None:
            return self._among(takers, hits, ticket, fleet) if np.count_nonzero(takers) else NOBODY
        calm = self._calm(able, fleet, ticket.foreground)
        warm = keepers & calm
        if np.count_nonzero(warm):
            found = self._warm_one(warm, able, takers, hits, ticket, fleet, now, head_wait_s)
            if found is not None:
                return found
        if not np.count_nonzero(takers):
            return NOBODY
        return self._among(_preferring(takers, calm & _spacious(fleet, ticket)), hits, ticket, fleet)

    def book(self, choice: Choice, ticket: Ticket, fleet: Fleet, now: float) -> Cost:
        """Takes the request off the chosen worker's credit; returns what it costs there."""
        view = fleet.at(choice.position)
        digests = ticket.chains.get(view.numerics)
        cost = self._taken(choice, ticket.cost, digests, fleet)
        fleet.book(choice.position, cost, cold=choice.cold, foreground=ticket.foreground)
        if digests is not None:
            fleet.index.expect(view.key, digests[-(-choice.cached_tokens // BLOCK_TOKENS) :], now)
        waited_s = min(max(now - ticket.arrival_s, 0.0), _LONGEST_WAIT_S)
        recent_s = self.recent_wait_s[ticket.latency_class]
        self.recent_wait_s[ticket.latency_class] = recent_s + _WAIT_WEIGHT * (waited_s - recent_s)
        return cost

    def _taken(self, choice: Choice, asked: Cost, digests: Digests | None, fleet: Fleet) -> Cost:
        """What the worker takes off its credit: a prefix that it has still to compute is not cached yet."""
        cached = choice.cached_tokens
        if digests is not None and cached:
            told = fleet.index.told(choice.position, digests[: -(-cached // BLOCK_TOKENS)])
            cached = min(cached, told * BLOCK_TOKENS)
        return _less(asked, cached)

    def _able(self, ticket: Ticket, fleet: Fleet) -> Mask:
        """Workers that could run it, without those that suit it badly where others are there."""
        able = fleet.suited(ticket)
        settings = self.settings
        least_kv = ticket.prefill_tokens / settings.long_prompt_share if settings.long_prompt_share else 0.0
        if settings.long_prompts and fleet.least[0] < least_kv:
            able = _preferring(able, fleet.kv_tokens >= least_kv)
        return able

    def _takers(self, able: Mask, hits: Hits, ticket: Ticket, fleet: Fleet) -> Mask:
        """Those of them with credit, and with sequence slots that are not kept for short requests."""
        settings = self.settings
        short = (
            ticket.prefill_tokens < settings.short_prompt_tokens
            and ticket.expected_output < settings.short_output_tokens
        )
        fleet.limit(self._limits)
        reserve = settings.short_slice > 0 and not short
        takers = fleet.affordable(ticket.cost, ticket.foreground, reserve)
        if not short and self._may_be_lengthy(ticket, fleet):
            takers = takers & self._quiet_enough(hits, ticket, fleet)
        return takers if able is fleet.ready else takers & able

    def _may_be_lengthy(self, ticket: Ticket, fleet: Fleet) -> bool:
        """Whether even the fastest worker computes the whole prompt for so long that others notice."""
        speeds, prompt = fleet.speeds, ticket.prefill_tokens
        if speeds is not self._speeds:
            self._speeds = speeds
            self._fastest_s = (
                float(speeds.token_s.min(initial=inf)),
                float(speeds.attention_s.min(initial=inf)) / 2,
            )
        token_s, attention_s = self._fastest_s
        return prompt * (token_s + attention_s * prompt) > _lengthy_s(ticket)

    def _quiet_enough(self, hits: Hits, ticket: Ticket, fleet: Fleet) -> Mask:
        """Workers for which the prompt is not lengthy, or where little prefill waits against it.

        Their credit stays open beside such a prompt, for others; the next one of its kind is to wait here.
        """
        own_s = self._scores.own_s(own_tokens(hits, ticket), ticket.prefill_tokens, fleet)
        queue_s = fleet.busy(ticket.foreground).queue_s
        found: Mask = (own_s <= _lengthy_s(ticket)) | (queue_s <= _QUIET_SHARE * own_s)
        return found

    def _sharers(self, warm: Mask, hits: Hits, ticket: Ticket, fleet: Fleet) -> Mask:
        """Warm workers with credit for what the prompt does not share there."""
        asked, shared = ticket.cost, int(hits[warm].min())
        own = Cost(asked.prefill_tokens, asked.sequences, max(1, asked.kv_blocks - shared))
        return warm & self._takers(warm, hits, replace(ticket, cost=own), fleet)

    def _crowding_s(self, warm: Mask, takers: Mask, hits: Hits, ticket: Ticket, fleet: Fleet) -> float:
        """GPU seconds that a second copy of the prefix displaces where KV is scarce, while it is read."""
        position = int(np.where(takers, fleet.busy(ticket.foreground).room, -inf).argmax())
        view = fleet.at(position)
        room = min(fleet.busy(ticket.foreground).room.item(position), view.total_blocks)
        scarce = 1.0 - room / max(_SCARCE * view.total_blocks, 1.0)
        if scarce <= 0.0:
            return 0.0
        step_s = fleet.model_of(position).decode_s(view.sequences, view.running_context)
        copied = int(hits[warm].max()) / max(view.total_blocks, 1)
        return scarce * copied * ticket.expected_output * step_s

    def _keepers(self, able: Mask, hits: Hits, ticket: Ticket) -> Mask | None:
        """Workers that keep most of the prompt; None when there is none."""
        prompt = ticket.prefill_tokens
        least = self.settings.warm_share * prompt
        if not self.settings.warm or least > max(0, prompt - 1):
            return None
        keepers: Mask = (hits >= ceil(least / BLOCK_TOKENS)) & able
        return keepers if np.count_nonzero(keepers) else None

    def _warm_one(
        self,
        warm: Mask,
        able: Mask,
        takers: Mask,
        hits: Hits,
        ticket: Ticket,
        fleet: Fleet,
        now: float,
        head_wait_s: float | None,
    ) -> Choice | None:
        """One of the warm workers, or that it waits for one; None when it had better go elsewhere."""
        warm_takers = warm & takers
        if not np.count_nonzero(warm_takers):
            warm_takers = self._sharers(warm, hits, ticket, fleet)
        if np.count_nonzero(warm_takers):
            return self._among(warm_takers, hits, ticket, fleet)
        if not np.count_nonzero(takers):
            return self._waits(ticket, fleet, now, head_wait_s, 0.0)
        own_s = self._scores.own_s(own_tokens(hits, ticket), ticket.prefill_tokens, fleet)
        saved_s = float(own_s[takers].min() - own_s[able].min())
        saved_s += self._crowding_s(warm, takers, hits, ticket, fleet)
        waits = self._waits(ticket, fleet, now, head_wait_s, saved_s)
        sooner = waits is not None and self._sooner_cold(ticket, warm, takers, hits, own_s, fleet)
        return None if sooner else waits

    def _calm(self, able: Mask, fleet: Fleet, foreground: bool) -> Mask:
        """Workers of which none is so busy that being warm there is worth nothing."""
        settings, kind = self.settings, fleet.busy(foreground)
        load, calm = kind.ready_load, kind.calm_load
        if not settings.calibrated:
            load, calm = (np.where(each < inf, kind.sequences, inf) for each in (load, calm))
        among = load if able is fleet.ready else load[able]
        least = among.item(among.argmin())
        found: Mask = calm <= min(settings.warm_load_factor * least + settings.warm_load_slack, MOST)
        return found

    def _sooner_cold(
        self, ticket: Ticket, warm: Mask, takers: Mask, hits: Hits, own_s: Floats, fleet: Fleet
    ) -> bool:
        """Whether the prefix is still being computed where it is warm, and about as soon done elsewhere."""
        if not self.settings.second_copies:
            return False
        there_s = own_s + fleet.busy(ticket.foreground).queue_s
        if there_s[takers].min() > _AS_SOON * there_s[warm].min():
            return False
        return not any(
            self._told(ticket, position, int(hits[position]), fleet)
            for position in warm.nonzero()[0].tolist()
        )

    def _told(self, ticket: Ticket, position: int, blocks: int, fleet: Fleet) -> bool:
        """Whether a worker said that it keeps most of the prompt."""
        digests = ticket.chains.get(fleet.at(position).numerics)
        told = 0 if digests is None else fleet.index.told(position, digests[:blocks]) * BLOCK_TOKENS
        return told >= self.settings.warm_share * ticket.prefill_tokens

    def _waits(
        self, ticket: Ticket, fleet: Fleet, now: float, head_wait_s: float | None, saved_s: float
    ) -> Choice | None:
        until = self._patient_until(ticket, fleet, now, head_wait_s, saved_s)
        return Choice(None, wait_until_s=until) if now < until else None

    def _patient_until(
        self, ticket: Ticket, fleet: Fleet, now: float, head_wait_s: float | None, saved_s: float
    ) -> float:
        """Until when a request waits for a closed warm worker: never past its own slack."""
        settings = self.settings
        if not settings.patience:
            return -inf
        least, most = settings.patience_s
        alone_s = ticket.prefill_tokens * float(fleet.speeds.token_s.min())
        start_by_s = inf if ticket.deadline_s is None else ticket.deadline_s - alone_s
        if head_wait_s == inf:
            return min(now + most, start_by_s)
        usual_s = max(head_wait_s or 0.0, self.recent_wait_s[ticket.latency_class])
        worth_s = max(settings.patience_saved * saved_s, least)
        until = ticket.arrival_s + min(max(settings.patience_factor * usual_s, worth_s), most)
        if ticket.ttft_target_s is not None:
            start_by = ticket.arrival_s + ticket.ttft_target_s - alone_s
            until = min(until, start_by if now <= start_by else ticket.arrival_s + min(worth_s, most))
        return min(until, now + most, start_by_s)

    def _among(self, takers: Mask, hits: Hits, ticket: Ticket, fleet: Fleet) -> Choice:
        position, several = int(takers.argmax()), np.count_nonzero(takers)
        if several > 1:
            alike = np.count_nonzero(takers & (hits == hits.item(position))) == several
            own = (
                ticket.prefill_tokens - cached_tokens(hits, position, ticket)
                if alike
                else own_tokens(hits, ticket)
            )
            scores = np.where(takers, self._scores.of(own, ticket, fleet), inf)
            position = self._of_equals(scores, hits, ticket, fleet)
        tokens = cached_tokens(hits, position, ticket)
        return Choice(fleet.at(position).key, position, tokens, None, self._cold(tokens, ticket))

    def _of_equals(self, scores: Floats, hits: Hits, ticket: Ticket, fleet: Fleet) -> int:
        """The best; of several that are as good, the one whose turn it is."""
        best = int(scores.argmin())
        equals = (scores <= scores.item(best)).nonzero()[0]
        if len(equals) < 2:
            return best
        cold = self.settings.cold_turns and self._cold(cached_tokens(hits, best, ticket), ticket)
        turns = fleet.last_cold if cold else fleet.last_given
        return equals.item(turns.take(equals).argmin())

    def _cold(self, cached: int, ticket: Ticket) -> bool:
        return cached < self.settings.warm_share * ticket.prefill_tokens


def _lengthy_s(ticket: Ticket) -> float:
    """As workers have it: twice the time of a first token, where its caller allows more than usual."""
    return max(_LENGTHY_S, 2.0 * (ticket.ttft_target_s or 0.0))


def _spacious(fleet: Fleet, ticket: Ticket) -> Mask:
    """Workers where a copy of a prefix displaces nothing."""
    found: Mask = fleet.busy(ticket.foreground).room * BLOCK_TOKENS >= _SCARCE * fleet.kv_tokens
    return found


def _less(asked: Cost, cached: int) -> Cost:
    return Cost(max(1, asked.prefill_tokens - cached), asked.sequences, asked.kv_blocks)


def _preferring(mask: Mask, liked: Mask) -> Mask:
    both = mask & liked
    return both if np.count_nonzero(both) else mask
