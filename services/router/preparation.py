"""From a visit to an order: model, encoding beside the response cache, context limits, shape, seed."""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from headrace.v1 import router_pb2, types_pb2

from services.common import errors
from services.common.errors import FieldViolation
from services.common.identity import Tenant
from services.common.scope import Keyring, ScopeKeys, TenantKeys
from services.router import responses, scheduling, validation
from services.router.caching import CacheClient, Lookup
from services.router.chains import chains
from services.router.encoding import Encoder, Source
from services.router.models import ModelBook, ServedModel
from services.router.policy import LatencyClass
from services.router.policy.classify import OutputHistory
from services.router.policy.ticket import Digests
from services.router.reception import Visit
from services.router.relay.order import Order
from services.router.sessions.workers import Workers
from services.router.settings import RouterSettings

DETERMINISTIC = "deterministic"
_numbers = itertools.count(1)


def next_number() -> int:
    """A number that no other order of this process has."""
    return next(_numbers)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a visit became: an order to run, or an answer that was kept."""

    model: ServedModel
    order: Order | None
    answer: router_pb2.Finished | None = None


class _Prompt(NamedTuple):
    """A prompt in ids, how long that took, and the names of its blocks."""

    ids: array[int]
    encode_s: float
    chains: Mapping[bytes, Digests]


class Preparation:
    """Prepares visits."""

    def __init__(
        self,
        settings: RouterSettings,
        models: ModelBook,
        encoder: Encoder,
        workers: Workers,
        keyring: Keyring,
        cache: CacheClient | None,
        history: OutputHistory,
    ) -> None:
        self._settings = settings
        self._models = models
        self._encoder = encoder
        self._workers = workers
        self._keyring = keyring
        self._cache = cache
        self._history = history

    async def prepare(self, visit: Visit) -> Prepared:
        """Encodes the prompt and looks for a kept answer meanwhile.

        Raises:
            NotFound, InvalidArgument, Unimplemented, DeadlineExceeded, Overloaded, Unavailable.
        """
        model = await self._models.find(visit.accepted.model)
        self._check_capabilities(visit, model)
        keys = self._keyring.tenant(visit.tenant.name)
        scope = scope_of(visit, keys)
        context = self._workers.context_length(model.name, model.description.context_length)
        _check_size(visit, model, context)
        lookup = self._look_for_answer(visit, model, context, scope)
        started = time.monotonic()
        try:
            ids = await self._prompt_ids(visit, model, scope, keys, context)
            encode_s = time.monotonic() - started
            names = await chains(scope, self._workers.chain_kinds(model.name), ids)
            kept = await lookup.value() if lookup else None
        except BaseException:
            if lookup:
                lookup.abandon()
            raise
        answer = responses.revive(kept) if kept is not None else None
        if answer is not None:
            return Prepared(model, None, answer)
        prompt = _Prompt(ids, encode_s, names)
        return Prepared(model, self._order(visit, model, prompt, context, keys, scope))

    async def count(self, source: Source, model: ServedModel, tenant: Tenant, timeout_s: float) -> int:
        """Prompt tokens of a text or conversation. Raises as `prepare`."""
        tag = self._keyring.tenant(tenant.name).tag
        ids = await self._encoder.encode(source, model, None, limit=None, timeout_s=timeout_s, tag=tag)
        return len(ids)

    def _look_for_answer(
        self, visit: Visit, model: ServedModel, context: int, scope: ScopeKeys | None
    ) -> Lookup | None:
        if self._cache is None or scope is None or not visit.accepted.reproducible:
            return None
        if not model.keeps(visit.accepted.chat):
            return None
        request = responses.canonical(visit.request, visit.accepted, model.name)
        made_with = self._workers.numerics(model.name)
        visit.keys = responses.response_keys(request, model, made_with, context, scope)
        return responses.ask(self._cache, visit.keys)

    def _check_capabilities(self, visit: Visit, model: ServedModel) -> None:
        """Refuses at once what no worker that is there can do."""
        sessions = self._workers.of(model.name)
        for capability in needed(visit):
            if sessions and not any(capability in each.capabilities for each in sessions):
                raise _lacking(capability, model.name)
        if visit.accepted.chat is not None and not model.description.chat:
            raise errors.InvalidArgument(
                FieldViolation("chat", f"the model {model.name!r} has no chat template")
            )

    async def _prompt_ids(
        self, visit: Visit, model: ServedModel, scope: ScopeKeys | None, keys: TenantKeys, context: int
    ) -> array[int]:
        accepted = visit.accepted
        vocab_size = model.description.vocab_size
        validation.check_ids("sampling.stop_token_ids", accepted.sampling.stop_token_ids, vocab_size)
        if accepted.token_ids is not None:
            validation.check_ids("token_ids.ids", accepted.token_ids, vocab_size)
            ids = accepted.token_ids
        else:
            timeout_s = visit.remaining_s(self._settings.encode_timeout_s)
            source = Source(accepted.text, accepted.chat)
            ids = await self._encoder.encode(
                source, model, scope, limit=context, timeout_s=timeout_s, tag=keys.tag
            )
        if not ids:
            raise errors.InvalidArgument(FieldViolation(accepted.prompt_field, "has no tokens"))
        if len(ids) >= context:
            message = f"{len(ids)} tokens leave no room in the context of {context}"
            raise errors.InvalidArgument(FieldViolation(accepted.prompt_field, message))
        return ids

    def _order(
        self,
        visit: Visit,
        model: ServedModel,
        prompt: _Prompt,
        context: int,
        keys: TenantKeys,
        scope: ScopeKeys | None,
    ) -> Order:
        accepted, latency_class, tenant = visit.accepted, visit.latency_class, visit.tenant
        ttft_s, tpot_s = self.targets(latency_class, tenant)
        max_tokens = min(accepted.max_tokens, context - len(prompt.ids))
        history = (tenant.name, model.name, latency_class)
        return Order(
            number=next_number(),
            request_id=accepted.request_id,
            tenant=tenant.name,
            tenant_tag=keys.tag,
            model=model.name,
            prompt_ids=prompt.ids,
            max_tokens=max_tokens,
            sampling=accepted.sampling,
            grammar=accepted.grammar,
            stops=accepted.stops,
            latency_class=latency_class,
            arrival_s=visit.arrival_s,
            deadline_s=visit.deadline_s,
            ttft_target_s=ttft_s,
            tpot_target_s=tpot_s,
            expected_output=self._history.expect(*history, max_tokens),
            output_known=self._history.knows(*history),
            scope=scope,
            labels=accepted.labels,
            capabilities=frozenset(needed(visit)),
            end_ids=model.end_ids,
            encode_s=prompt.encode_s,
            chains=prompt.chains,
            traceparent=visit.traceparent,
            asked_class=accepted.latency_class,
            class_reason=visit.verdict.reason,
            preferred_labels=accepted.preferred_labels,
            weight=tenant.weight,
            interactive_share=tenant.interactive_share,
            sheddable=tenant.sheddable if accepted.sheddable is None else accepted.sheddable,
            wait=accepted.wait,
        )

    def targets(self, latency_class: LatencyClass, tenant: Tenant) -> tuple[float | None, float | None]:
        """Times to the first token and between tokens that a tenant's request of a class is to have."""
        return scheduling.targets(self._settings.classes[latency_class], latency_class, tenant)


def _check_size(visit: Visit, model: ServedModel, context: int) -> None:
    """Refuses a text that cannot fit however it is encoded, before anything is spent on it.

    Of a conversation nothing is certain before its template is rendered.
    """
    text = visit.accepted.text
    excess = model.facts.excess(text, context) if text is not None and model.facts is not None else None
    if excess is not None:
        message = f"{excess.size} bytes; the context of {context} tokens holds at most {excess.most}"
        raise errors.InvalidArgument(FieldViolation(visit.accepted.prompt_field, message))


def scope_of(visit: Visit, keys: TenantKeys) -> ScopeKeys | None:
    """Whose cached work a visit may reuse; None: nobody's."""
    if visit.accepted.cache_scope == types_pb2.CACHE_SCOPE_NONE:
        return None
    user = visit.accepted.user if visit.accepted.cache_scope == types_pb2.CACHE_SCOPE_USER else None
    return keys.scope(user)


def needed(visit: Visit) -> list[str]:
    """Capabilities that a worker must have."""
    found = []
    if visit.accepted.grammar is not None:
        found.append("grammar")
    if visit.accepted.sampling.HasField("logprobs"):
        found.append("logprobs")
    if visit.accepted.deterministic:
        found.append(DETERMINISTIC)
    return found


def _lacking(capability: str, model: str) -> errors.HeadraceError:
    message = f"no worker of model {model!r} has the capability {capability!r}"
    if capability == DETERMINISTIC:
        return errors.FailedPrecondition(message, reason="NOT_DETERMINISTIC")
    return errors.Unimplemented(message)
