"""What a request will cost and how long it will take, in seconds, from the workers' own step models.

    GPU seconds  uncached prefill + expected output x (marginal decode + its part of a step's fixed cost)
    wait         GPU seconds ahead of it / (workers x its class's share), plus the time until a worker opens
    first token  wait + prefill that is queued there + its own
    head-room x  mean over workers of max(queued prefill / TTFT, decode step / (1 - prefill share) / TPOT,
                 KV in use / 1.05)

Predictions are compared with what happened, and corrected by how they turned out lately. A target that a
worker could not keep even for a lone request is stretched to what it can: a slow machine is not overloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

import numpy as np

from services.router.policy.background import Background
from services.router.policy.classify import LatencyClass
from services.router.policy.columns import some
from services.router.policy.correction import Correction
from services.router.policy.drain import Drain
from services.router.policy.fleet import Fleet
from services.router.policy.inflow import Inflow
from services.router.policy.occupancy import PrefillRate
from services.router.policy.queue import ModelQueue
from services.router.policy.settings import PolicySettings
from services.router.policy.speed import CHUNK_TOKENS, PRIOR, Floats, StepModel
from services.router.policy.ticket import Ticket
from services.router.policy.worker import BLOCK_TOKENS

_LEARNING = 0.05
_MOST_PREFILL = 0.8
_KV_SLACK = 1.05
_LONGEST_GAP_S = 60.0
FOREGROUND = (LatencyClass.INTERACTIVE, LatencyClass.STANDARD)


class Estimate(NamedTuple):
    """What a request costs, in GPU seconds."""

    prefill_s: float
    total_s: float


class Prediction(NamedTuple):
    """Seconds from the queueing to the dispatch, and from the arrival to the first token."""

    wait_s: float
    """Infinite where no worker was there to predict from."""
    ttft_s: float


def _corrections() -> dict[LatencyClass, Correction]:
    return {each: Correction() for each in LatencyClass}


@dataclass(slots=True)
class Predictor:
    """Predictions for the requests of one model."""

    settings: PolicySettings
    fleet: Fleet
    queue: ModelQueue
    waits: dict[LatencyClass, Correction] = field(default_factory=_corrections)
    firsts: dict[LatencyClass, Correction] = field(default_factory=_corrections)
    typical_prefill_s: float = 0.0
    """Moving mean of what a prompt takes alone."""
    prefilled: PrefillRate = field(default_factory=PrefillRate)
    inflow: Inflow = field(default_factory=Inflow)
    background: Background = field(default_factory=Background)
    drains: dict[LatencyClass, Drain] = field(init=False)
    gap_s: float = 0.0
    """Moving mean of the time between two dispatches while requests wait."""
    _last_dispatch_s: float = -inf
    _reference: StepModel = PRIOR
    _reference_of: object = None
    _claims: tuple[StepModel, ...] = ()

    def __post_init__(self) -> None:
        self.drains = {each: Drain(self.settings.restored_share) for each in LatencyClass}

    def estimate(self, ticket: Ticket, uncached: int) -> Estimate:
        """GPU seconds of a request of which so many prompt tokens are not cached."""
        model, prompt, output = self.reference, ticket.prefill_tokens, ticket.expected_output
        prefill_s = model.prefill_s(uncached, prompt - uncached)
        context = prompt + output / 2
        token_s = model.b + model.e + context * model.d + model.a / self._neighbours()
        return Estimate(prefill_s, prefill_s + max(output - 1, 0) * token_s)

    @property
    def reference(self) -> StepModel:
        """The step model of the worker in the middle of the pool."""
        speeds = self.fleet.speeds
        if speeds is not self._reference_of:
            positions = np.fromiter(self.fleet.index.positions.values(), np.int64)
            self._reference_of = speeds
            self._reference = PRIOR
            if len(positions):
                order = speeds.token_s[positions].argsort(kind="stable")
                self._reference = self.fleet.model_of(int(positions[order[len(order) // 2]]))
            self._claims = _fastest(self.fleet.claims())
        return self._reference

    def predict(self, ticket: Ticket, uncached: int, now: float) -> Prediction | None:
        """Of a request that would be queued now; None when no worker could run it."""
        suited = self.fleet.suited(ticket)
        if not some(suited):
            return None
        raw_wait_s = self.raw_wait_s(ticket, self.fleet.opens(ticket))
        wait_s = self.corrected_wait_s(ticket, raw_wait_s)
        waited_s = max(0.0, now - ticket.arrival_s)
        first_s = self.corrected_first_s(ticket, self.raw_first_s(ticket, uncached))
        return Prediction(wait_s, waited_s + wait_s + first_s)

    def raw_wait_s(self, ticket: Ticket, opening: bool) -> float:
        """Wait before the correction: what is ahead in its class, at its class's share of the pool.

        `opening`: whether a worker could take it at once.
        """
        held = self.queue.held[ticket.latency_class]
        if opening and not held.requests:
            return 0.0
        workers = int(np.count_nonzero(self.fleet.suited(ticket)))
        if not workers:
            return inf
        if not held.requests:
            return self.gap_s
        tenants = self.queue.tenants[ticket.latency_class]
        own = tenants.get(ticket.tenant)
        ahead_s = min(held.cost_s, own.cost_s * len(tenants)) if own else 0.0
        if not self.settings.tenant_fairness:
            ahead_s = held.cost_s
        return self.gap_s + ahead_s / (workers * self._share(ticket.latency_class))

    def queue_s(self, ticket: Ticket, uncached: int, now: float) -> float:
        """Wait if the queue goes on as it does, and nobody ahead gives up."""
        latency_class = ticket.latency_class
        if ticket.tenant not in self.queue.tenants[latency_class]:
            return 0.0
        workers = max(1, int(np.count_nonzero(self.fleet.suited(ticket))))
        target_s = ticket.ttft_target_s or self.settings.classes[latency_class].ttft_s
        in_time_s = None
        if target_s is not None and self.settings.relegation:
            in_time_s = ticket.arrival_s + target_s - now - self._alone_s(ticket, uncached)
        usual = workers * self._share(latency_class)
        return self.drains[latency_class].wait_s(ticket, self.queue, now, usual, in_time_s)

    def raw_first_s(self, ticket: Ticket, uncached: int) -> float:
        """From the dispatch to the first token, before the correction, on the least busy worker."""
        takers = self.fleet.suited(ticket)
        queued_s = self.fleet.busy(ticket.foreground).queue_s[takers]
        return float(queued_s.min(initial=inf)) + self._alone_s(ticket, uncached)

    def first_there_s(self, ticket: Ticket, uncached: int, position: int) -> float:
        """The same on the worker at a position, before it is booked, and before the correction."""
        model = self.fleet.model_of(position)
        queued_s = float(self.fleet.busy(ticket.foreground).queue_s[position])
        return queued_s + model.prefill_s(uncached, ticket.prefill_tokens - uncached) + self._decode_s()

    def corrected_first_s(self, ticket: Ticket, raw_s: float) -> float:
        """A time from dispatch to first token, corrected."""
        return self._corrected(self.firsts, ticket, raw_s)

    def corrected_wait_s(self, ticket: Ticket, raw_s: float) -> float:
        """A wait, corrected."""
        return self._corrected(self.waits, ticket, raw_s)

    def lone_s(self, ticket: Ticket, uncached: int) -> float:
        """The least that the request can take on an idle pool: to its end where its length is known.

        By the fastest of all claims, so that one that is too slow to be true keeps nobody out.
        """
        least_s = self._lone_s(ticket, uncached, self.reference)
        for claim in self._claims:
            if claim != self._reference:
                least_s = min(least_s, self._lone_s(ticket, uncached, claim))
        return least_s

    def _lone_s(self, ticket: Ticket, uncached: int, model: StepModel) -> float:
        prefill_s = model.prefill_s(uncached, ticket.prefill_tokens - uncached)
        if not ticket.output_known:
            return prefill_s
        output = ticket.expected_output
        return prefill_s + max(output - 1, 0) * model.decode_s(1, ticket.prefill_tokens + output / 2)

    def lone_first_s(self, estimate: Estimate) -> float:
        """Time to the first token on an idle pool."""
        return self.reference.upper_quantile * estimate.prefill_s

    def look(self, now: float) -> None:
        """Takes into account what workers told of prompts since the last look."""
        self.prefilled.look(now)
        self.inflow.prompts.look(now)

    def headroom(self, latency_class: LatencyClass, now: float | None = None) -> float:
        """How much of the room for a class's targets is used, 1 at the targets; batch work uses none."""
        if now is not None:
            self.look(now)
        fleet, policy = self.fleet, self.settings.classes[latency_class]
        ready = fleet.ready
        if not some(ready):
            return 0.0
        used = self._kv_used()
        if policy.ttft_s is not None:
            target_s = max(policy.ttft_s, 2 * self.typical_prefill_s)
            used = np.maximum(used, (fleet.busy(foreground=True).queue_s + self._queued_s()) / target_s)
        if policy.tpot_s is not None:
            steps_s = self._steps_s() / (1.0 - self._prefill_share())
            used = np.maximum(used, steps_s / np.maximum(policy.tpot_s, 2 * self._steps_s(lone=True)))
        return _mean(used[ready], self.settings.sheddable_ramp[1])

    def coming(self, latency_class: LatencyClass, now: float) -> float:
        """The head-room for a class's target of steps that admitted work is going to use."""
        self.look(now)
        tpot_s, ready = self.settings.classes[latency_class].tpot_s, self.fleet.ready
        if tpot_s is None or not some(ready):
            return 0.0
        lone_s = self._steps_s(lone=True)
        room = 1.0 - lone_s / np.maximum(tpot_s, 2 * lone_s)
        return self.inflow.used(self._prompt_tokens_per_s(), self._queued_s(), float(room[ready].mean()))

    def computed(self, prompt_tokens: int) -> None:
        """Workers told of so many more prompt tokens, of foreground requests of all routers."""
        self.prefilled.computed(prompt_tokens)
        self.inflow.prompts.computed(prompt_tokens)

    def ended(self, ticket: Ticket, prefill_s: float, output_tokens: int) -> None:
        """A request is over that had so many output tokens."""
        model, context = self.reference, ticket.prefill_tokens + output_tokens / 2
        self.inflow.ended(prefill_s, output_tokens * (model.b + model.e + context * model.d))

    def dispatched(self, ticket: Ticket, predicted_s: float, waited_s: float, now: float) -> None:
        """A request went; `predicted_s`: its wait as it was predicted, before the correction."""
        if self.queue.any_held:
            gap_s = min(max(now - self._last_dispatch_s, 0.0), _LONGEST_GAP_S)
            self.gap_s += _LEARNING * (gap_s - self.gap_s)
        self._last_dispatch_s = now
        self.waits[ticket.latency_class].learn(predicted_s, waited_s)

    def began(self, ticket: Ticket, predicted_s: float, actual_s: float) -> None:
        """The first token is there; times from the dispatch, the prediction before the correction."""
        self.firsts[ticket.latency_class].learn(predicted_s, actual_s)

    def queued(self, prefill_s: float) -> None:
        """A request was queued that takes so long alone."""
        self.typical_prefill_s += _LEARNING * (min(prefill_s, _LONGEST_GAP_S) - self.typical_prefill_s)

    def _alone_s(self, ticket: Ticket, uncached: int) -> float:
        model = self.reference
        return model.upper_quantile * model.prefill_s(uncached, ticket.prefill_tokens - uncached)

    def _decode_s(self) -> float:
        """The decodes that share a step with a prefill."""
        return (self._neighbours() - 1) * (self.reference.b + self.reference.e)

    def _neighbours(self) -> float:
        return max(1.0, self.fleet.mean_sequences)

    def _share(self, latency_class: LatencyClass) -> float:
        """The class's part of the pool while the classes wait that wait now."""
        shares = self.settings.shares
        waiting = [each for each in LatencyClass if self.queue.held[each].requests or each == latency_class]
        if not self.settings.class_shares:
            return 1.0
        return max(shares[latency_class], 1e-6) / max(sum(shares[each] for each in waiting), 1e-6)

    def _corrected(self, corrections: dict[LatencyClass, Correction], ticket: Ticket, raw_s: float) -> float:
        return corrections[ticket.latency_class].apply(raw_s) if self.settings.learn_errors else raw_s

    def _prefill_share(self) -> float:
        """Part of the workers' time that goes into prompts: decodes have the rest."""
        if not self.settings.shared_steps:
            return 0.0
        capacity = self._prompt_tokens_per_s()
        return min(self.prefilled.tokens_per_s / max(capacity, 1e-9), _MOST_PREFILL)

    def _queued_s(self) -> float:
        """Prefill that waits here, a worker."""
        waiting_s = sum(self.queue.held[each].prefill_s for each in FOREGROUND)
        return waiting_s / max(1, int(np.count_nonzero(self.fleet.ready)))

    def _prompt_tokens_per_s(self) -> float:
        """What the workers could compute if they did nothing else."""
        token_s = self.fleet.speeds.token_s[self.fleet.ready]
        return float((1.0 / np.maximum(token_s, 1e-9)).sum())

    def _kv_used(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        fleet = self.fleet
        blocks = np.maximum(fleet.kv_tokens / BLOCK_TOKENS, 1.0)
        free = fleet.free_blocks + self.background.blocks(fleet.width)
        used = 1.0 - np.minimum(free / blocks, 1.0)
        return np.where(fleet.sequences > 0, used / _KV_SLACK, 0.0)

    def _steps_s(self, *, lone: bool = False) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Seconds of a step of the decodes that run, or of one alone, by position."""
        a, b, _, d, e, _ = self.fleet.speeds.models
        if lone:
            return np.asarray(a + b + e)
        background, width = self.background, self.fleet.width
        sequences = self.fleet.busy(foreground=True).sequences
        context = np.maximum(self.fleet.running_context - background.context(width), 0.0)
        return np.asarray(a + sequences * (b + e) + context * d)


def _fastest(claims: Iterable[StepModel]) -> tuple[StepModel, ...]:
    """The ones that compute a chunk, and that make a token, soonest."""
    found = tuple(claims)
    if not found:
        return ()
    return (
        min(found, key=lambda each: each.prefill_s(CHUNK_TOKENS)),
        min(found, key=lambda each: each.decode_s()),
    )


def _mean(used: Floats, most: float) -> float:
    """Of workers' head-room; one far above the others counts as much as shows that it is full."""
    middle = (len(used) - 1) // 2
    typical = float(np.partition(used, middle)[middle])
    return float(np.minimum(used, max(most, 2 * typical)).mean())
