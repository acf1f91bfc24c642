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

from services.router.policy.fleet import Fleet
from services.router.policy.kinds import MOST, Limits
from services.router.policy.lengthy import LengthyPrompts
from services.router.policy.patience import SCARCE, Patience, displaced_s
from services.router.policy.placement_settings import PlacementSettings
from services.router.policy.scores import Scores, cached_tokens, own_tokens
from services.router.policy.speed import Floats, Mask
from services.router.policy.spread import Hits
from services.router.policy.ticket import Cost, Digests, Ticket
from services.router.policy.worker import BLOCK_TOKENS

_AS_SOON = 1.25


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

    def uncached(self, asked: Cost) -> int:
        """Prompt tokens to compute there."""
        return max(1, asked.prefill_tokens - self.cached_tokens)


NOBODY = Choice(None)


class _Asked(NamedTuple):
    """What a choice is about."""

    ticket: Ticket
    fleet: Fleet
    hits: Hits
    now: float
    head_wait_s: float | None


class Placement:
    """Chooses workers, by the settings alone but for what its patience remembers."""

    def __init__(self, settings: PlacementSettings | None = None) -> None:
        self.settings = settings or PlacementSettings()
        self._scores = Scores(self.settings)
        self._lengthy = LengthyPrompts(self._scores)
        self._patience = Patience(self.settings)
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
        sole = fleet.sole
        if sole is not None and self._takes(sole, hits, ticket, fleet):
            return self._choice(sole, hits, ticket, fleet)
        able = self._able(ticket, fleet)
        takers = self._takers(able, hits, ticket, fleet)
        if ticket.preferred_labels:
            takers = _preferring(takers, fleet.labelled(ticket.preferred_labels, frozenset()))
            able = able & takers if np.count_nonzero(takers) else able
        keepers = self._keepers(able, hits, ticket)
        if keepers is None:
            return self._among(takers, hits, ticket, fleet)
        calm = self._calm(able, fleet, ticket.foreground)
        warm = keepers & calm
        if np.count_nonzero(warm):
            found = self._warm_one(warm, able, takers, _Asked(ticket, fleet, hits, now, head_wait_s))
            if found is not None:
                return found
        return self._among(_preferring(takers, calm & _spacious(fleet, ticket)), hits, ticket, fleet)

    def book(self, choice: Choice, ticket: Ticket, fleet: Fleet, now: float) -> Cost:
        """Takes the request off the chosen worker's credit; returns what it costs there."""
        view = fleet.at(choice.position)
        digests = ticket.chains.get(view.numerics)
        cost = self._taken(choice, ticket.cost, digests, fleet)
        fleet.book(choice.position, cost, cold=choice.cold, foreground=ticket.foreground)
        if digests is not None:
            fleet.index.expect(view.key, digests[-(-choice.cached_tokens // BLOCK_TOKENS) :], now)
        self._patience.dispatched(ticket, now)
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
        short = self._short(ticket)
        fleet.limit(self._limits)
        takers = fleet.affordable(ticket.cost, ticket.foreground, self._limits.reserve > 0 and not short)
        if not short and self._lengthy.possible(hits, ticket, fleet):
            takers = takers & self._lengthy.places(hits, ticket, fleet)
        return takers if able is fleet.ready else takers & able

    def _takes(self, position: int, hits: Hits, ticket: Ticket, fleet: Fleet) -> bool:
        """Whether the only worker takes it now: then there is none to prefer, nor one to wait for."""
        short = self._short(ticket)
        fleet.limit(self._limits)
        if not fleet.takes(position, ticket, self._limits.reserve > 0 and not short):
            return False
        if short or not self._lengthy.possible(hits, ticket, fleet):
            return True
        return self._lengthy.places(hits, ticket, fleet).item(position)

    def _short(self, ticket: Ticket) -> bool:
        """Whether it may have sequence slots that are kept for short requests."""
        settings = self.settings
        return (
            ticket.prefill_tokens < settings.short_prompt_tokens
            and ticket.expected_output < settings.short_output_tokens
        )

    def _sharers(self, warm: Mask, hits: Hits, ticket: Ticket, fleet: Fleet) -> Mask:
        """Warm workers with credit for what the prompt does not share there."""
        asked, shared = ticket.cost, int(hits[warm].min())
        own = Cost(asked.prefill_tokens, asked.sequences, max(1, asked.kv_blocks - shared))
        return warm & self._takers(warm, hits, replace(ticket, cost=own), fleet)

    def _keepers(self, able: Mask, hits: Hits, ticket: Ticket) -> Mask | None:
        """Workers that keep most of the prompt; None when there is none."""
        prompt = ticket.prefill_tokens
        least = self.settings.warm_share * prompt
        if not self.settings.warm or least > max(0, prompt - 1) or (least > 0 and not ticket.chains):
            return None
        keepers: Mask = (hits >= ceil(least / BLOCK_TOKENS)) & able
        return keepers if np.count_nonzero(keepers) else None

    def _warm_one(self, warm: Mask, able: Mask, takers: Mask, asked: _Asked) -> Choice | None:
        """One of the warm workers, or that it waits for one; None when it had better go elsewhere."""
        ticket, fleet, hits = asked.ticket, asked.fleet, asked.hits
        warm_takers = warm & takers
        if not np.count_nonzero(warm_takers):
            warm_takers = self._sharers(warm, hits, ticket, fleet)
        if np.count_nonzero(warm_takers):
            return self._among(warm_takers, hits, ticket, fleet)
        if not np.count_nonzero(takers):
            return self._waits(asked, 0.0)
        own_s = self._scores.own_s(own_tokens(hits, ticket), ticket.prefill_tokens, fleet)
        saved_s = float(own_s[takers].min() - own_s[able].min())
        saved_s += displaced_s(warm, takers, hits, ticket, fleet)
        waits = self._waits(asked, saved_s)
        sooner = waits is not None and self._sooner_cold(asked, warm, takers, own_s)
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

    def _sooner_cold(self, asked: _Asked, warm: Mask, takers: Mask, own_s: Floats) -> bool:
        """Whether the prefix is still being computed where it is warm, and about as soon done elsewhere."""
        if not self.settings.second_copies:
            return False
        ticket, fleet, hits = asked.ticket, asked.fleet, asked.hits
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

    def _waits(self, asked: _Asked, saved_s: float) -> Choice | None:
        ticket, fleet, _, now, head_wait_s = asked
        until = self._patience.until(ticket, fleet, now, head_wait_s, saved_s)
        return Choice(None, wait_until_s=until) if now < until else None

    def _among(self, takers: Mask, hits: Hits, ticket: Ticket, fleet: Fleet) -> Choice:
        """The best of those that take it."""
        position = int(takers.argmax())
        if not takers.item(position):
            return NOBODY
        several = np.count_nonzero(takers) if fleet.open_workers(ticket.foreground) > 1 else 1
        if several > 1:
            alike = np.count_nonzero(takers & (hits == hits.item(position))) == several
            own = (
                ticket.prefill_tokens - cached_tokens(hits, position, ticket)
                if alike
                else own_tokens(hits, ticket)
            )
            scores = np.where(takers, self._scores.of(own, ticket, fleet), inf)
            position = self._of_equals(scores, hits, ticket, fleet)
        return self._choice(position, hits, ticket, fleet)

    def _choice(self, position: int, hits: Hits, ticket: Ticket, fleet: Fleet) -> Choice:
        tokens = cached_tokens(hits, position, ticket)
        return Choice(fleet.at(position).key, position, tokens, None, self._cold(tokens, ticket))

    def _of_equals(self, scores: Floats, hits: Hits, ticket: Ticket, fleet: Fleet) -> int:
        """The best; of several that are as good, the one whose turn it is."""
        best = int(scores.argmin())
        equals = (scores <= scores.item(best) * (1 + self.settings.tie_share)).nonzero()[0]
        if len(equals) < 2:
            return best
        cold = self.settings.cold_turns and self._cold(cached_tokens(hits, best, ticket), ticket)
        turns = fleet.last_cold if cold else fleet.last_given
        return equals.item(turns.take(equals).argmin())

    def _cold(self, cached: int, ticket: Ticket) -> bool:
        return cached < self.settings.warm_share * ticket.prefill_tokens


def _spacious(fleet: Fleet, ticket: Ticket) -> Mask:
    """Workers where a copy of a prefix displaces nothing."""
    found: Mask = fleet.busy(ticket.foreground).room * BLOCK_TOKENS >= SCARCE * fleet.kv_tokens
    return found


def _less(asked: Cost, cached: int) -> Cost:
    return Cost(max(1, asked.prefill_tokens - cached), asked.sequences, asked.kv_blocks)


def _preferring(mask: Mask, liked: Mask) -> Mask:
    both = mask & liked
    return both if np.count_nonzero(both) else mask
