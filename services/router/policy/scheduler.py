"""The one object that the dispatcher asks: who is let in, who goes next and where, and who gives way.

The seam of the router's scheduling. The dispatcher submits, removes, tells of workers and of what they did,
and asks `next` until it answers None. Choice and booking happen in one call. Times are seconds of the
caller's clock; one that jumps changes what is overdue, never who gets which share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from services.router.policy import admission
from services.router.policy.admission import QueueLimits, Refusal
from services.router.policy.classify import LatencyClass
from services.router.policy.fleet import Fleet
from services.router.policy.pool import Pool
from services.router.policy.prediction import FOREGROUND, Prediction
from services.router.policy.preemption import Displacement, Seat, Yard, victims
from services.router.policy.settings import PolicySettings
from services.router.policy.ticket import Cost, Ticket
from services.router.policy.worker import WorkerView

_HEADS = 8
"""Interactive requests looked at when somebody has to give way."""


class _Payer(NamedTuple):
    """Whose counter output tokens go to."""

    model: str
    tenant: str
    latency_class: LatencyClass


class Assignment(NamedTuple):
    """A request and the worker that it was booked on."""

    ticket: Ticket
    worker: str
    cost: Cost
    """What it takes there: prefill tokens are those that the worker is thought not to keep."""
    predicted: Prediction
    """The wait as predicted when it was queued, the first token as predicted now."""


class Waiting(NamedTuple):
    """What waits for one model."""

    requests: int
    prefill_tokens: int
    foreground_requests: int = 0
    """Of these, those that batch work gives way to."""
    foreground_prefill_tokens: int = 0


class Accuracy(NamedTuple):
    """How good predictions of one class were lately."""

    wait_factor: float
    """What predicted waits are multiplied with; there is an offset besides."""
    wait_error: float
    """Mean of |actual - predicted| / actual."""
    first_factor: float
    first_error: float


class Scheduler:
    """Requests of all models in order of class, tenant and deadline, on the workers that suit them best.

    Raises ValueError when the settings contradict: one line for each fault.
    """

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self.settings = settings or PolicySettings()
        faults = self.settings.validate()
        if faults:
            raise ValueError("\n".join(faults))
        self._limits = QueueLimits(self.settings.tenant_queued_requests, self.settings.tenant_queued_bytes)
        self.held_back: set[str] = set()
        """Tenants of which nothing goes to a worker now; the caller adds and takes away."""
        self._pools: dict[str, Pool] = {}
        self._model_of: dict[str, str] = {}
        self._waits_in: dict[int, Pool] = {}
        self._waiting_of: dict[str, int] = {}
        self._seats: dict[int, Seat] = {}
        self._batch: dict[str, dict[int, Seat]] = {}
        self._displaced: dict[int, int] = {}
        self._alone_since: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._waits_in)

    def within_budget(self, ticket: Ticket, now: float) -> bool:
        """Whether its tenant may have an INTERACTIVE request more; to be asked once, before `admit`.

        False: it should run as STANDARD, and its caller should be told.
        """
        pool = self._pools.get(ticket.model)
        if pool is None:
            return True
        cost_s = pool.scale.weigh(ticket).estimate.total_s if ticket.foreground else 0.0
        pool.budget.asked(ticket, cost_s, now)
        if ticket.latency_class is not LatencyClass.INTERACTIVE:
            return True
        used = pool.predictor.headroom(LatencyClass.INTERACTIVE, now) if pool.budget.contended(now) else 0.0
        return pool.budget.allows(ticket, cost_s, used, len(pool.fleet), now)

    def admit(self, ticket: Ticket, now: float, limits: QueueLimits | None = None) -> Refusal | None:
        """Why the request is not let in, or None; `limits`: what its tenant may have waiting."""
        pool = self._pool(ticket.model)
        outlook = pool.outlook(ticket, now)
        return admission.admit(ticket, outlook, self.settings, limits or self._limits, now, pool.thinning)

    def full(self, tenant: str, most: int) -> bool:
        """Whether nothing more of a tenant may wait where `most` requests may in all."""
        return admission.part_full(self._waiting_of.get(tenant, 0), most - len(self))

    def submit(self, ticket: Ticket, now: float | None = None) -> None:
        """Lets a request wait, at the place of its arrival; one that had a worker has left it."""
        self._leave(ticket.number, came_back=True)
        pool = self._pool(ticket.model)
        self.remove(ticket.number)
        pool.submit(ticket, ticket.arrival_s if now is None else now)
        self._waits_in[ticket.number] = pool
        self._waiting_of[ticket.tenant] = self._waiting_of.get(ticket.tenant, 0) + 1

    def remove(self, number: int) -> Ticket | None:
        """Takes a waiting request out; None when it does not wait."""
        self._alone_since.pop(number, None)
        pool = self._waits_in.pop(number, None)
        entry = pool.remove(number) if pool is not None else None
        if entry is None:
            return None
        self._waits_no_more(entry.ticket)
        return entry.ticket

    def ended(self, number: int, cached_tokens: int | None = None) -> None:
        """A request is over, wherever it was; `cached_tokens`: of its prompt, as its worker reported."""
        self.remove(number)
        self._displaced.pop(number, None)
        self._leave(number, came_back=False, cached_tokens=cached_tokens)

    def streamed(self, number: int, tokens: int, now: float) -> None:
        """Output tokens of an own request came; to be told before `served` of the same frame."""
        self.streamed_together({number: tokens}, now)

    def streamed_together(self, made: Mapping[int, int], now: float) -> None:
        """The same of all requests of a frame, by number: each tenant is charged once."""
        owed: dict[_Payer, int] = {}
        for number, tokens in made.items():
            seat = self._seats.get(number)
            if seat is None or tokens <= 0:
                continue
            ticket = seat.ticket
            if not seat.output_tokens:
                self._pools[ticket.model].began(seat, now)
            seat.output_tokens += tokens
            payer = _Payer(ticket.model, ticket.tenant, ticket.latency_class)
            owed[payer] = owed.get(payer, 0) + tokens
        for (model, tenant, latency_class), tokens in owed.items():
            self._pools[model].queue.charge_output(tenant, latency_class, tokens)

    def served(
        self, model: str, tenant: str, latency_class: LatencyClass, prompt_tokens: int, output_tokens: int
    ) -> None:
        """What a worker did for a tenant since it last told, for all routers together."""
        pool = self._pool(model)
        if latency_class is not LatencyClass.BATCH:
            pool.predictor.computed(prompt_tokens)
        pool.queue.served(tenant, latency_class, prompt_tokens, output_tokens)

    def worker_changed(self, worker: WorkerView) -> None:
        """Takes over what a worker reports; also how a new one becomes known."""
        earlier = self._model_of.get(worker.key)
        if earlier is not None and earlier != worker.model:
            self.worker_gone(worker.key)
        self._model_of[worker.key] = worker.model
        self._pool(worker.model).put(worker)

    def worker_gone(self, key: str) -> None:
        """Forgets a worker and all that it keeps; what ran there is submitted again or ends."""
        model = self._model_of.pop(key, None)
        if model is not None:
            self._pools[model].lose(key)

    def fleet(self, model: str) -> Fleet:
        """The workers of a model, with the index of what they keep."""
        return self._pool(model).fleet

    def next(self, now: float) -> Assignment | None:
        """The next request that can go, booked on its worker; None when nothing can."""
        for pool in self._pools.values():
            placed = pool.next(now)
            if placed is not None:
                seat = placed.seat
                number = seat.ticket.number
                self._waits_in.pop(number)
                self._waits_no_more(seat.ticket)
                self._alone_since.pop(number, None)
                self._seats[number] = seat
                if seat.ticket.latency_class is LatencyClass.BATCH:
                    self._batch.setdefault(seat.worker, {})[number] = seat
                return Assignment(seat.ticket, seat.worker, seat.cost, placed.prediction)
        return None

    def give_way(self, now: float) -> list[Displacement]:
        """Batch requests that are to leave their workers for interactive ones that wait.

        Each is named once. The caller cancels it there, keeps its output, and submits it again.
        """
        if not self.settings.preemption or not self._batch:
            return []
        found: list[Displacement] = []
        for pool in self._pools.values():
            found += self._displacements(pool, now)
        return found

    def waiting(self, model: str) -> Waiting:
        """What waits for a model."""
        pool = self._pools.get(model)
        if pool is None:
            return Waiting(0, 0)
        queue = pool.queue
        front = [part[each] for part in (queue.held, queue.aside) for each in FOREGROUND]
        return Waiting(
            len(pool.queue),
            pool.queue.prefill_tokens,
            sum(each.requests for each in front),
            sum(each.prefill_tokens for each in front),
        )

    def tickets(self) -> Iterator[Ticket]:
        """All requests that wait, in no particular order."""
        for pool in self._pools.values():
            for entry in pool.queue.entries():
                yield entry.ticket

    def waiting_by_class(self) -> dict[LatencyClass, int]:
        """Requests that wait, of all models."""
        return {each: sum(pool.queue.waiting(each) for pool in self._pools.values()) for each in LatencyClass}

    def counter(self, model: str, tenant: str, latency_class: LatencyClass) -> float:
        """Weighted tokens that a tenant was served in a class, as its turn depends on them."""
        return self._pool(model).queue.counter(tenant, latency_class)

    def headroom(self, model: str, latency_class: LatencyClass) -> float:
        """Used room for a class's targets: 0 idle, 1 at the targets."""
        return self._pool(model).predictor.headroom(latency_class)

    def accuracy(self, model: str, latency_class: LatencyClass) -> Accuracy:
        """How predictions of a class turned out lately."""
        predictor = self._pool(model).predictor
        wait, first = predictor.waits[latency_class], predictor.firsts[latency_class]
        return Accuracy(wait.factor, wait.error, first.factor, first.error)

    def impatient(self, now: float) -> list[Ticket]:
        """Requests that no known worker could run for longer than their class is patient; they still wait.

        Those whose deadline is near are among them: once it has passed nobody hears why nothing came. Of
        very many that wait it looks at some each time, in turns.
        """
        found = []
        for pool in self._pools.values():
            for ticket, alone in pool.survey():
                if not alone:
                    self._alone_since.pop(ticket.number, None)
                elif self._gives_up(ticket, now):
                    found.append(ticket)
        return found

    def _gives_up(self, ticket: Ticket, now: float) -> bool:
        since = min(self._alone_since.setdefault(ticket.number, now), now)
        self._alone_since[ticket.number] = since
        patience_s = self.settings.classes[ticket.latency_class].patience_s
        return now - since >= patience_s or now >= ticket.last_word_s

    def _waits_no_more(self, ticket: Ticket) -> None:
        self._waiting_of[ticket.tenant] -= 1
        if not self._waiting_of[ticket.tenant]:
            del self._waiting_of[ticket.tenant]

    def _pool(self, model: str) -> Pool:
        pool = self._pools.get(model)
        if pool is None:
            pool = self._pools[model] = Pool(self.settings, self.held_back)
        return pool

    def _leave(self, number: int, *, came_back: bool, cached_tokens: int | None = None) -> None:
        """A request has left its worker; what was charged for it and not done is given back."""
        seat = self._seats.pop(number, None)
        if seat is None:
            return
        on_worker = self._batch.get(seat.worker, {})
        on_worker.pop(number, None)
        if not on_worker:
            self._batch.pop(seat.worker, None)
        self._pools[seat.ticket.model].leave(seat, came_back=came_back, cached_tokens=cached_tokens)

    def _displacements(self, pool: Pool, now: float) -> list[Displacement]:
        """For each interactive request that nothing can take, those that make room; each once."""
        found: list[Displacement] = []
        leaving = sum(seat.leaving for seats in self._batch.values() for seat in seats.values())
        for ticket in pool.stuck(now, _HEADS)[leaving:]:
            plan = victims(ticket, self._yards(pool, ticket), self._displaced, self.settings, now)
            for seat in plan:
                seat.leaving = True
                number = seat.ticket.number
                self._displaced[number] = self._displaced.get(number, 0) + 1
                found.append(Displacement(number, seat.worker, seat.begun))
        return found

    def _yards(self, pool: Pool, ticket: Ticket) -> list[Yard]:
        return [
            Yard(view, self._batch[view.key].values())
            for view in pool.fleet
            if view.ready and view.key in self._batch and view.suits(ticket)
        ]
