"""One model's requests and workers: the parts of the policy joined. The scheduler holds one pool a model."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import partial
from math import inf
from typing import NamedTuple

import numpy as np

from services.router.policy.admission import Outlook, Thinning
from services.router.policy.aside import Aside, Surveyed, may_suit_others
from services.router.policy.budget import InteractiveBudget
from services.router.policy.classify import LatencyClass
from services.router.policy.columns import some
from services.router.policy.fleet import Fleet
from services.router.policy.overdrafts import Overdrafts
from services.router.policy.pace import Pace
from services.router.policy.placement import Choice, Placement
from services.router.policy.prediction import Prediction, Predictor
from services.router.policy.preemption import Seat
from services.router.policy.queue import Lane, ModelQueue
from services.router.policy.queue.order import Entry, Place
from services.router.policy.scale import Scale
from services.router.policy.settings import PolicySettings
from services.router.policy.ticket import Ticket
from services.router.policy.turn import Parts, Turn
from services.router.policy.worker import WorkerView


class Placed(NamedTuple):
    """A request that goes: what was predicted, and its seat."""

    entry: Entry
    seat: Seat
    prediction: Prediction


class Pool:
    """The queue of one model, and where its requests can go."""

    def __init__(self, settings: PolicySettings, held_back: AbstractSet[str] = frozenset()) -> None:
        """`held_back`: tenants of which nothing goes to a worker now."""
        self.settings = settings
        self._held_back = held_back
        self.fleet = Fleet()
        self.placement = Placement(settings.placement)
        self.queue = ModelQueue(settings)
        self.predictor = Predictor(settings, self.fleet, self.queue)
        self.scale = Scale(self.fleet, self.predictor)
        self.budget = InteractiveBudget(settings)
        self.pace = Pace()
        self.thinning = Thinning(settings)
        self._overdrafts = Overdrafts(settings, self.fleet, self.placement)
        parts = Parts(self.fleet, self.queue, self.scale, self.placement, self._overdrafts, self.pace)
        self._turn = Turn(settings, parts, held_back)
        self._held_at: dict[str, float] = {}
        self._aside = Aside(self.fleet, self.queue)

    def submit(self, ticket: Ticket, now: float) -> None:
        """Lets a request wait."""
        estimate = self.scale.weigh(ticket).estimate
        raw_wait_s = self.raw_wait_s(ticket)
        self.predictor.queued(estimate.prefill_s)
        self.pace.came(ticket, self.predictor.reference)
        entry = self.queue.add(ticket, estimate.prefill_s, estimate.total_s, now)
        entry.raw_wait_s = raw_wait_s
        self.queue.put_aside(entry, self._aside.nobody_for(ticket))

    def raw_wait_s(self, ticket: Ticket) -> float:
        """The wait of a request that is queued now, as predicted before the correction."""
        return self.predictor.raw_wait_s(ticket, self.scale.weigh(ticket).opening)

    def put(self, view: WorkerView) -> None:
        """Takes over what a worker reports; also how a new one becomes known."""
        earlier = self.fleet.get(view.key)
        if earlier is not None and self.pace.target_s is not None:
            self.pace.hold(view, self.fleet.model_of(self.fleet.index.positions[view.key]))
        self.fleet.put(view)
        self.news()
        if earlier is None or may_suit_others(earlier, view):
            self._aside.bring_back()

    def remove(self, number: int) -> Entry | None:
        """Takes a request out."""
        return self.queue.remove(number)

    def lose(self, key: str) -> None:
        """A worker is gone."""
        self.fleet.drop(key)
        self.news()

    def began(self, seat: Seat, now: float) -> None:
        """The first output token of a request came."""
        self.predictor.began(seat.ticket, seat.predicted_first_s, now - seat.since_s)
        self.predictor.background.began(seat)
        uncached = seat.ticket.prefill_tokens - seat.cached_tokens
        self.fleet.computed(seat.worker, uncached, seat.cached_tokens, now - seat.since_s)
        self._overdrafts.settled(seat.ticket.number, now)

    def leave(self, seat: Seat, *, came_back: bool, cached_tokens: int | None) -> None:
        """A request has left its worker: settles what was charged by what was done."""
        ticket, queue = seat.ticket, self.queue
        self._overdrafts.settled(ticket.number, None)
        self.predictor.background.left(ticket.number)
        self.pace.seated(seat, -1)
        uncached = ticket.prefill_tokens - seat.cached_tokens
        if came_back and not seat.begun:
            queue.charge(ticket, prompt=-uncached, cached=-seat.cached_tokens)
            queue.settle(seat.lane, -seat.total_s)
            return
        if cached_tokens is not None:
            more = min(max(seat.cached_tokens - cached_tokens, -uncached), seat.cached_tokens)
            queue.correct(ticket, prompt=more, cached=-more)
        if ticket.foreground:
            self.predictor.ended(ticket, seat.prefill_s, seat.output_tokens)
        expected = max(ticket.expected_output, 1)
        decode_s = seat.total_s - seat.prefill_s
        queue.settle(seat.lane, decode_s * (seat.output_tokens - expected) / expected)

    def survey(self) -> Iterator[Surveyed]:
        """Which of the requests no worker is there for; while others have one, these are in nobody's way."""
        return self._aside.survey()

    def stuck(self, now: float, most: int) -> list[Ticket]:
        """Interactive requests at the front that nothing could take for a while."""
        after_s = self.settings.preempt_after_s
        return [
            entry.ticket
            for entry in self.queue.heads(Lane.INTERACTIVE, most)
            if now - entry.queued_s >= after_s
            and not some(self.fleet.suited(entry.ticket) & self.fleet.affordable(entry.ticket.cost, True))
        ]

    def news(self) -> None:
        """Workers or their credit changed: who was passed over is looked at again."""
        self._turn.news()

    def outlook(self, ticket: Ticket, now: float) -> Outlook:
        """The situation that a request would come into."""
        fleet, predictor, latency_class = self.fleet, self.predictor, ticket.latency_class
        predictor.look(now)
        uncached, estimate, opening = self.scale.weigh(ticket)
        own = self.queue.of_tenant(ticket.tenant)
        return Outlook(
            workers=opening or some(fleet.suited(ticket)),
            opening=opening and not self._ahead(latency_class),
            headroom=predictor.headroom(latency_class) if ticket.sheddable else 0.0,
            coming=predictor.coming(latency_class, now) if ticket.sheddable else 0.0,
            predict=partial(predictor.predict, ticket, uncached, now),
            queue_s=0.0 if ticket.deadline_s is None else predictor.queue_s(ticket, uncached, now),
            lone_s=0.0 if ticket.deadline_s is None else predictor.lone_s(ticket, uncached),
            lone_first_s=predictor.lone_first_s(estimate),
            cost_s=estimate.total_s,
            tenant_requests=own.requests,
            tenant_bytes=own.bytes,
        )

    def next(self, now: float) -> Placed | None:
        """The next request that can go, booked; None when nothing can."""
        for tenant in self._held_back:
            self._held_at[tenant] = now
        self._look(now)
        if not len(self.queue) or not self.fleet.any_open:
            return None
        found = self._turn.next(now)
        return None if found is None else self._book(*found, now)

    def _look(self, now: float) -> None:
        """Whether so much is asked for that workers take no more than fits their targets."""
        if not self.settings.pace or not self.pace.due(now):
            return
        tightest, fleet = self.pace.tightest, self.fleet
        target_s = None if tightest is None else self.settings.classes[tightest].tpot_s
        sequences = float(fleet.busy(foreground=True).sequences.sum())
        workers = int(np.count_nonzero(fleet.ready))
        self.pace.look(now, target_s, self.predictor.reference, workers, sequences)

    def _book(self, entry: Entry, choice: Choice, now: float) -> Placed:
        ticket, predictor = entry.ticket, self.predictor
        uncached = choice.uncached(ticket.cost)
        estimate = self.scale.estimate(ticket, uncached)
        raw_first_s = predictor.first_there_s(ticket, uncached, choice.position)
        cost = self.placement.book(choice, ticket, self.fleet, now)
        waited_s = max(0.0, now - ticket.arrival_s)
        prediction = Prediction(
            predictor.corrected_wait_s(ticket, entry.raw_wait_s),
            waited_s + predictor.corrected_first_s(ticket, raw_first_s),
        )
        self.queue.take(entry, estimate.total_s, uncached, ticket.prefill_tokens - uncached)
        self._went(entry, now)
        if not entry.delayed and entry.queued_s >= self._held_at.get(ticket.tenant, -inf):
            predictor.dispatched(ticket, entry.raw_wait_s, now - entry.queued_s, now)
        seat = Seat(
            ticket=ticket,
            worker=self.fleet.at(choice.position).key,
            since_s=now,
            lane=entry.lane,
            cost=cost,
            cached_tokens=ticket.prefill_tokens - uncached,
            prefill_s=estimate.prefill_s,
            total_s=estimate.total_s,
            predicted_first_s=raw_first_s,
        )
        self.pace.seated(seat)
        if not ticket.foreground:
            predictor.background.seated(seat, choice.position)
        return Placed(entry, seat, prediction)

    def _went(self, entry: Entry, now: float) -> None:
        latency_class, late = entry.ticket.latency_class, entry.place is not Place.DUE
        others_wait = self.queue.held[latency_class].requests > 0
        self.predictor.drains[latency_class].went(entry.cost_s, now, late=late, others_wait=others_wait)

    def _ahead(self, latency_class: LatencyClass) -> bool:
        """Whether a request of the class waits that could go before a new one."""
        tenants = self.queue.tenants[latency_class]
        back = sum(tenants[each].requests for each in self._held_back if each in tenants)
        return self.queue.held[latency_class].requests > back
