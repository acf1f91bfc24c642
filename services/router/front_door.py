"""RouterService: the life of a request, as prose (DESIGN §3)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from headrace.v1 import router_pb2

from services.common import errors
from services.common.errors import FieldViolation
from services.common.replies import Replies
from services.common.rpc import Context
from services.router import journal, responses, rules, scheduling, validation
from services.router.caching import CacheClient
from services.router.continuity.resumption import Resumption
from services.router.dispatcher import Dispatcher
from services.router.encoding import Source
from services.router.metrics import RouterMetrics
from services.router.models import ModelBook, ServedModel
from services.router.policy.classify import OutputHistory
from services.router.preparation import Preparation, Prepared
from services.router.reception import Reception, Visit
from services.router.relay.flight import Flight
from services.router.relay.order import WIRE_CLASS, Order
from services.router.relay.outlet import Flush, Outlet, Patience
from services.router.relay.report import wire_reason
from services.router.relay.text import TextReader
from services.router.relay.trailers import trailers
from services.router.settings import RouterSettings

_UNWATCHED = Patience(1 << 62, float("inf"))


class RouterServicer:
    """Serves `headrace.v1.RouterService`."""

    def __init__(
        self,
        settings: RouterSettings,
        reception: Reception,
        preparation: Preparation,
        resumption: Resumption,
        models: ModelBook,
        dispatcher: Dispatcher,
        cache: CacheClient | None,
        history: OutputHistory,
        metrics: RouterMetrics,
    ) -> None:
        self._settings = settings
        self._reception = reception
        self._preparation = preparation
        self._resumption = resumption
        self._models = models
        self._dispatcher = dispatcher
        self._cache = cache
        self._history = history
        self._metrics = metrics
        self._patience = Patience(settings.slow_reader.unsent_tokens, settings.slow_reader.stall_s)

    async def Generate(self, request: router_pb2.GenerateRequest, context: Context, replies: Replies) -> None:
        """Streams the output. Cancelling the call cancels the work in the same turn."""
        streaming = request.stream if request.HasField("stream") else True
        finished = await self._served(
            request, context, lambda outlet: outlet.flow(replies), streaming=streaming
        )
        replies.begin(router_pb2.GenerateResponse(finished=finished))

    async def GenerateUnary(
        self, request: router_pb2.GenerateRequest, context: Context
    ) -> router_pb2.Finished:
        """The whole output at once. Cancelling the call cancels the work in the same turn."""
        return await self._served(request, context, Outlet.whole, streaming=False)

    async def ListModels(
        self, _: router_pb2.ListModelsRequest, context: Context
    ) -> router_pb2.ListModelsResponse:
        """The models that can be asked for now."""
        self._reception.tenant(context)
        return router_pb2.ListModelsResponse(models=[self._describe(each) for each in self._models.known()])

    async def CountTokens(
        self, request: router_pb2.CountTokensRequest, context: Context
    ) -> router_pb2.CountTokensResponse:
        """Prompt tokens that a generation would use."""
        tenant = self._reception.tenant(context)
        size = validation.size(request, self._settings.limits)
        source = _source(request)
        with self._reception.shares(tenant, size) as shares:
            model = await self._models.find(request.model if request.HasField("model") else None)
            tokens = await self._preparation.count(source, model, tenant, self._settings.encode_timeout_s)
            shares.charge(tokens)
        return router_pb2.CountTokensResponse(tokens=tokens, model=model.name)

    async def _served(
        self,
        request: router_pb2.GenerateRequest,
        context: Context,
        output: Callable[[Outlet], Awaitable[router_pb2.Finished]],
        *,
        streaming: bool,
    ) -> router_pb2.Finished:
        """A call from arrival to end: whatever it holds is given back, and its end is counted once."""
        outcome, why, visit = "cancelled", "", None
        self._metrics.running.value += 1
        try:
            visit = self._reception.enter(request, context, streaming=streaming)
            finished = await output(await self._begin(visit))
            self._complete(visit, finished, context)
            return finished
        except errors.HeadraceError as error:
            outcome, why = error.reason.lower(), journal.why(error)
            raise
        finally:
            if visit is not None and visit.complete:
                outcome = "ok"
            self._metrics.running.value -= 1
            self._metrics.ended.labels(outcome).inc()
            if visit is not None:
                self._leave(visit, outcome, why)

    async def _begin(self, visit: Visit) -> Outlet:
        """Where the output comes from: the cache, a worker, or what another call left."""
        if visit.request.HasField("resume"):
            return await self._resumption.begin(visit, self._patience)
        prepared = await self._preparation.prepare(visit)
        if prepared.order is None:
            return self._replay(visit, prepared)
        return self._launch(visit, prepared.model, prepared.order)

    def _launch(self, visit: Visit, model: ServedModel, order: Order) -> Outlet:
        order = self._within_budget(visit, order)
        text = TextReader(model.table, order.stops, order.sampling.min_tokens)
        outlet = Outlet(
            visit.flush(self._settings.classes[visit.latency_class]),
            self._patience,
            whole=not visit.streaming,
            keep=visit.keys is not None,
        )
        visit.flight = Flight(order, text, outlet, self._resumption.claimable(visit, order))
        visit.shares.charge(len(order.prompt_ids))
        limits = scheduling.queue_limits(visit.tenant)
        self._dispatcher.launch(visit.flight, limits=limits, on_start=visit.shares.started)
        return outlet

    def _within_budget(self, visit: Visit, order: Order) -> Order:
        """Beyond its tenant's interactive budget a request runs as STANDARD, and its caller is told."""
        if not self._dispatcher.within_budget(order):
            visit.verdict = visit.verdict.over_budget()
            latency_class, reason = visit.verdict
            order = order.demoted(
                latency_class, reason, self._preparation.targets(latency_class, visit.tenant)
            )
        self._metrics.launched(order)
        return order

    def _replay(self, visit: Visit, prepared: Prepared) -> Outlet:
        answer = prepared.answer
        assert answer is not None
        finished = responses.replayed(answer, visit.accepted, WIRE_CLASS[visit.latency_class])
        finished.class_reason = wire_reason(visit.verdict.reason)
        if visit.accepted.latency_class is not None:
            finished.asked_class = WIRE_CLASS[visit.accepted.latency_class]
        finished.timings.total_us = int((time.monotonic() - visit.arrival_s) * 1e6)
        finished.timings.first_token_us = finished.timings.total_us
        outlet = Outlet(Flush(0.0, 1), _UNWATCHED, whole=not visit.streaming)
        outlet.push(answer.token_ids, answer.text, answer.logprobs)
        outlet.finish(finished)
        return outlet

    def _complete(self, visit: Visit, finished: router_pb2.Finished, context: Context) -> None:
        """A request ended well: its timings go with it, its answer is kept where that is right."""
        visit.complete = True
        context.set_trailing_metadata(trailers(finished))
        flight = visit.flight
        if flight is None:
            return
        order = flight.order
        self._history.record(order.tenant, order.model, order.latency_class, len(flight.ids))
        if self._cache is not None and visit.keys is not None:
            responses.keep(self._cache, visit.keys, flight)

    def _leave(self, visit: Visit, outcome: str, why: str) -> None:
        flight = visit.flight
        seat = flight.seat if flight else None
        if flight is not None:
            self._dispatcher.leave(flight)
            visit.shares.charge(max(0, len(flight.ids) - visit.charged_tokens))
        visit.shares.leave()
        journal.request_ended(visit, outcome, why, seat.worker_id if seat else "")

    def _describe(self, model: ServedModel) -> router_pb2.Model:
        workers, known = self._dispatcher.workers, model.description
        return router_pb2.Model(
            name=model.name,
            context_length=workers.context_length(model.name, known.context_length),
            vocab_size=known.vocab_size,
            workers=len(workers.of(model.name)),
            chat=known.chat,
            capabilities=sorted(workers.capabilities(model.name)),
        )


def _source(request: router_pb2.CountTokensRequest) -> Source:
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise errors.InvalidArgument(FieldViolation("prompt", "needed: text or chat"))
    faults = rules.chat_faults(request.chat) if kind == "chat" else ()
    if faults:
        raise errors.InvalidArgument(*faults)
    return Source(request.text, None) if kind == "text" else Source(None, request.chat)
