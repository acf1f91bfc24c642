"""A client comes back for a stream that broke off: from its call to the rest of the stream.

    running at a worker        adopted there, as the next attempt
    ended at a worker          its rest and its end are delivered
    cancelled or given back    computed on, as the next attempt, wherever there is room

Output, randomness, stop strings, limits and class go on as the first call had them; see `relay.taken_up`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from headrace.v1 import session_pb2, types_pb2

from services.common import errors
from services.common.errors import FieldViolation
from services.common.scope import Keyring, TenantKeys
from services.router import validation
from services.router.chains import chains
from services.router.continuity import claims
from services.router.dispatcher import Dispatcher
from services.router.metrics import RouterMetrics, TakenUp
from services.router.models import ModelBook, ServedModel
from services.router.policy import LatencyClass
from services.router.policy.classify import Verdict
from services.router.preparation import Preparation, needed, next_number, scope_of
from services.router.reception import Visit
from services.router.relay.attempt import Claimable, Seat
from services.router.relay.flight import Flight
from services.router.relay.order import Order
from services.router.relay.outlet import Patience
from services.router.relay.report import read_reason
from services.router.relay.taken_up import RestOutlet, replay
from services.router.relay.text import TextReader
from services.router.sessions.found import Found
from services.router.settings import RouterSettings

NO_SLOT = 0
AGAIN: Final = "again"
"""How a stream is taken up: computed on, from its prompt and all output."""
MOST_MS = 10**12
"""30 years: absurd times of a worker are cut."""


class _Output(NamedTuple):
    """What is known of the output, with log-probabilities of all that the client lacks."""

    ids: array[int]
    logprobs: Sequence[types_pb2.PositionLogprobs]
    whole: bool
    """All that the worker has. Otherwise log-probabilities of some are lost: those tokens are made again."""


class Resumption:
    """Takes streams up."""

    def __init__(
        self,
        settings: RouterSettings,
        models: ModelBook,
        keyring: Keyring,
        preparation: Preparation,
        dispatcher: Dispatcher,
        metrics: RouterMetrics,
    ) -> None:
        self._settings = settings
        self._models = models
        self._keyring = keyring
        self._preparation = preparation
        self._dispatcher = dispatcher
        self._metrics = metrics

    def claimable(self, visit: Visit, order: Order) -> Claimable:
        """What another router needs to go on with it."""
        return claims.sealed(visit.request, order, self._keyring.tenant(visit.tenant.name))

    async def begin(self, visit: Visit, patience: Patience) -> RestOutlet:
        """Where the rest of the output comes from.

        Raises:
            NotFound: nothing is left of such a request of this tenant. InvalidArgument, AlreadyExists.
        """
        resume, keys = visit.request.resume, self._keyring.tenant(visit.tenant.name)
        if resume.next_index and not visit.streaming:
            raise errors.InvalidArgument(
                FieldViolation("resume.next_index", "must be 0 where the answer comes as a whole")
            )
        key = claims.claim_key(keys, resume.request_id)
        found = await self._dispatcher.adoption.find(key, resume.next_index)
        state = claims.opened(found.submit, keys) if found is not None else None
        if found is None or state is None:
            self._metrics.taken_up.labels("nothing").inc()
            raise _nothing(resume.request_id)
        return await self._take_up(visit, keys, found, state, patience)

    async def _take_up(
        self,
        visit: Visit,
        keys: TenantKeys,
        found: Found,
        state: session_pb2.RouterState,
        patience: Patience,
    ) -> RestOutlet:
        model = await self._models.find(state.model)
        _go_on_as(visit, found, state)
        order = await self._order(visit, keys, found, state, model)
        resume = visit.request.resume
        outlet = RestOutlet(
            visit.flush(self._settings.classes[visit.latency_class]),
            patience,
            next_index=resume.next_index,
            text_bytes=resume.text_bytes if resume.HasField("text_bytes") else None,
            whole=not visit.streaming,
        )
        text = TextReader(model.table, order.stops, order.sampling.min_tokens)
        claimable = Claimable(found.submit.claim_key, found.submit.router_state)
        visit.flight = Flight(order, text, outlet, claimable)
        self._start(visit, visit.flight, outlet, found)
        return outlet

    def _start(self, visit: Visit, flight: Flight, outlet: RestOutlet, found: Found) -> None:
        now, next_index = time.monotonic(), visit.request.resume.next_index
        output = _output(found, next_index)
        flight.attempt = found.attempt
        flight.submitted_s = flight.waiting_since = now
        end = found.end if output.whole else None
        there = found.session
        flight.keep_seat(Seat(there.worker_id, NO_SLOT, there.hello.digests.numerics))
        replay(flight, outlet, output.ids, output.logprobs, end, next_index=next_index, now=now)
        flight.leave_seat()
        visit.charged_tokens = 0 if found.orphaned else len(flight.ids)
        visit.shares.started()
        adoptable = found.running and output.whole
        how = _how(flight, adoptable)
        if how == AGAIN and not found.orphaned:  # its client let it end, and wants it computed once more
            visit.shares.charge(len(found.prompt))
        self._metrics.taken_up.labels(how).inc()
        self._dispatcher.take_up(flight, found if adoptable else None)

    async def _order(
        self,
        visit: Visit,
        keys: TenantKeys,
        found: Found,
        state: session_pb2.RouterState,
        model: ServedModel,
    ) -> Order:
        submit, accepted, tenant = found.submit, visit.accepted, visit.tenant
        ttft_s, tpot_s = self._preparation.targets(visit.latency_class, tenant)
        scope = scope_of(visit, keys)
        kinds = self._dispatcher.workers.chain_kinds(model.name)
        return Order(
            number=next_number(),
            request_id=accepted.request_id,
            tenant=tenant.name,
            tenant_tag=keys.tag,
            model=model.name,
            prompt_ids=found.prompt,
            max_tokens=submit.max_tokens,
            sampling=submit.sampling,
            grammar=accepted.grammar,
            stops=accepted.stops,
            latency_class=visit.latency_class,
            arrival_s=visit.arrival_s,
            deadline_s=visit.deadline_s,
            ttft_target_s=ttft_s,
            tpot_target_s=tpot_s,
            expected_output=submit.expected_output_tokens,
            scope=scope,
            labels=accepted.labels,
            capabilities=frozenset(needed(visit)),
            end_ids=model.end_ids,
            encode_s=state.encode_us / 1e6,
            traceparent=submit.traceparent,
            asked_class=accepted.latency_class,
            class_reason=visit.verdict.reason,
            preferred_labels=accepted.preferred_labels,
            weight=tenant.weight,
            interactive_share=tenant.interactive_share,
            chains=await chains(scope, kinds, found.prompt),
        )


def _go_on_as(visit: Visit, found: Found, state: session_pb2.RouterState) -> None:
    """The visit becomes the one that was interrupted, with its arrival, deadline, class and options."""
    submit, now, here = found.submit, time.monotonic(), visit.accepted
    accepted = validation.revived(state.request)
    visit.accepted = replace(
        accepted,
        request_id=here.request_id,
        flush_delay_s=accepted.flush_delay_s if here.flush_delay_s is None else here.flush_delay_s,
        flush_tokens=here.flush_tokens or accepted.flush_tokens,
    )
    visit.verdict = Verdict(_class(submit.latency_class), read_reason(state.class_reason))
    visit.arrival_s = now - min(submit.waited_ms, MOST_MS) / 1000
    if submit.HasField("remaining_ms"):
        there_s = now + min(submit.remaining_ms, MOST_MS) / 1000
        visit.deadline_s = there_s if visit.deadline_s is None else min(visit.deadline_s, there_s)


def _how(flight: Flight, adoptable: bool) -> TakenUp:
    return "ended" if flight.over else "adopted" if adoptable else AGAIN


def _class(number: int) -> LatencyClass:
    return LatencyClass(number) if number in set(LatencyClass) else LatencyClass.STANDARD


def _output(found: Found, next_index: int) -> _Output:
    missing = found.submit.sampling.HasField("logprobs") and found.first_logprob > next_index
    if missing:
        return _Output(found.output[:next_index], (), whole=next_index == len(found.output))
    return _Output(found.output, found.logprobs[next_index - found.first_logprob :], whole=True)


def _nothing(request_id: str) -> errors.NotFound:
    message = "nothing is left of this request to resume"
    return errors.NotFound(message, kind="request", name=request_id, reason="NOTHING_TO_RESUME")
