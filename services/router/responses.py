"""Exact answers kept for equal requests: only those that every run gives again.

The key covers the whole request with defaults written out, less what cannot change the answer, and the
digests of everything that made it. A field that this list does not know counts: a new one costs hits, never
a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from headrace.v1 import router_pb2, types_pb2

from services.common.scope import ScopeKeys
from services.router.caching import RESPONSE, CacheClient, Lookup
from services.router.models import ServedModel
from services.router.relay.flight import Flight
from services.router.validation import Accepted

NOT_PART_OF_THE_ANSWER = (
    "request_id",
    "latency_class",
    "stream",
    "completion_deadline",
    "do_not_queue",
    "cache_scope",
    "user",
    "flush",
    "resume",
    "sheddable",
    "preferred_labels",
)
_OF_ONE_RUN = (
    *("request_id", "timings", "latency_class", "asked_class", "class_reason", "shape"),
    *("worker_id", "attempts", "seed", "text", "token_ids", "logprobs"),
)
MAX_NUMERICS = 4
KIND = "response"


@dataclass(frozen=True, slots=True)
class ResponseKeys:
    """Where the answer of one request would be, by the numerics that it is made with."""

    scope: ScopeKeys
    by_numerics: dict[bytes, bytes]


def canonical(request: router_pb2.GenerateRequest, accepted: Accepted, model: str) -> bytes:
    """The part of a request that decides its answer, as bytes."""
    final = router_pb2.GenerateRequest()
    final.CopyFrom(request)
    for name in NOT_PART_OF_THE_ANSWER:
        final.ClearField(name)
    final.model = model
    final.max_tokens = accepted.max_tokens
    final.sampling.CopyFrom(accepted.sampling)
    final.sampling.ClearField("seed")
    return final.SerializeToString(deterministic=True)


def response_keys(
    request: bytes,
    model: ServedModel,
    made_with: Sequence[tuple[bytes, bytes]],
    context: int,
    scope: ScopeKeys,
) -> ResponseKeys:
    """The keys under which the answer may be; `made_with` are pairs of weights and numerics digests."""
    digests = model.digests
    fields = (request, digests.tokenizer, digests.template, context.to_bytes(8, "little"))
    keys = {
        numerics: scope.cache_key(KIND, *fields, weights, numerics)
        for weights, numerics in made_with[:MAX_NUMERICS]
    }
    return ResponseKeys(scope, keys)


def ask(cache: CacheClient, keys: ResponseKeys) -> Lookup | None:
    """Begins to look for the answer; None when there is nothing to look for."""
    if not keys.by_numerics:
        return None
    return cache.look_up(RESPONSE, list(keys.by_numerics.values()), keys.scope)


def keep(cache: CacheClient, keys: ResponseKeys, flight: Flight) -> None:
    """Stores the answer of a request that ended well, made under one numerics id."""
    if flight.finished is None or len(flight.numerics) != 1:
        return
    key = keys.by_numerics.get(next(iter(flight.numerics)))
    if key is not None:
        cache.store(RESPONSE, key, _answer(flight).SerializeToString(), keys.scope, flight.order.tenant_tag)


def revive(value: bytes) -> router_pb2.Finished | None:
    """The answer as it was kept; None when it is none."""
    try:
        found = router_pb2.Finished.FromString(value)
    except DecodeError:
        return None
    return found if found.finish_reason else None


def _answer(flight: Flight) -> router_pb2.Finished:
    assert flight.finished is not None
    answer = router_pb2.Finished()
    answer.CopyFrom(flight.finished)
    for name in _OF_ONE_RUN:
        answer.ClearField(name)
    kept = flight.outlet.kept
    answer.text = "".join(kept.text)
    answer.token_ids.extend(flight.ids)
    answer.logprobs.extend(kept.logprobs)
    answer.usage.ClearField("cached_tokens")
    return answer


def replayed(
    answer: router_pb2.Finished, accepted: Accepted, latency_class: types_pb2.LatencyClass
) -> router_pb2.Finished:
    """The end of a stream that comes from the cache, without its output."""
    finished = router_pb2.Finished()
    finished.CopyFrom(answer)
    for name in ("text", "token_ids", "logprobs"):
        finished.ClearField(name)
    finished.request_id = accepted.request_id
    finished.latency_class = latency_class
    finished.seed = accepted.sampling.seed
    finished.cached_response = True
    return finished
