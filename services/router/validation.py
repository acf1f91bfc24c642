"""GenerateRequest into what it means, with all defaults; or every field that is wrong, by its path."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import Message
from headrace.v1 import router_pb2, types_pb2

from services.common.errors import FieldViolation, InvalidArgument, ResourceExhausted
from services.router.chains import packed
from services.router.policy import LatencyClass
from services.router.rules import SAMPLING, SCOPES, seconds, violations
from services.router.settings import LimitSettings

DEFAULT_MAX_TOKENS = 256
MANY_IDS = 2048
"""Fewer are looked through sooner than numpy has begun."""
NO_LABELS: frozenset[tuple[str, str]] = frozenset()


def _defaults() -> types_pb2.SamplingParams:
    found = types_pb2.SamplingParams(top_k=0, min_tokens=0, ignore_eos=False)
    for name, bounds in SAMPLING.items():
        setattr(found, name, bounds.default)
    return found


_DEFAULTS = _defaults()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request whose fields are all in order, defaults filled in."""

    request_id: str
    model: str | None
    text: str | None
    chat: types_pb2.ChatMessages | None
    token_ids: array[int] | None
    sampling: types_pb2.SamplingParams
    """Complete but for the seed, which may be unset."""
    max_tokens: int
    stops: tuple[str, ...]
    grammar: types_pb2.Grammar | None
    latency_class: LatencyClass | None
    completion_s: float | None
    wait: bool
    cache_scope: types_pb2.CacheScope
    user: str | None
    flush_delay_s: float | None
    flush_tokens: int | None
    labels: frozenset[tuple[str, str]]
    preferred_labels: frozenset[tuple[str, str]]
    sheddable: bool | None
    """None: as set for the tenant."""
    deterministic: bool

    @property
    def reproducible(self) -> bool:
        """Whether every run gives the same answer without regard to a seed."""
        return self.sampling.temperature == 0 or self.sampling.top_k == 1

    @property
    def prompt_field(self) -> str:
        """The field that holds the prompt."""
        return "text" if self.text is not None else "chat" if self.chat is not None else "token_ids.ids"


def size(request: Message, limits: LimitSettings) -> int:
    """Its bytes. Raises ResourceExhausted: it is too large."""
    found = request.ByteSize()
    if found > limits.request_bytes:
        message = f"the request has more than {limits.request_bytes} bytes"
        raise ResourceExhausted(message, reason="REQUEST_TOO_LARGE")
    return found


def accept(request: router_pb2.GenerateRequest, limits: LimitSettings) -> Accepted:
    """Reads a request. Raises InvalidArgument, which names every field that is wrong."""
    found = violations(request, limits)
    if found:
        raise InvalidArgument(*found)
    return _accepted(_resuming(request) if request.HasField("resume") else request)


def revived(request: router_pb2.GenerateRequest) -> Accepted:
    """A request that another router has accepted; it has no prompt."""
    return _accepted(request)


def check_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises InvalidArgument for ids that are not in the vocabulary."""
    if ids and _largest(ids) >= vocab_size:
        position = next(index for index, each in enumerate(ids) if each >= vocab_size)
        message = f"{ids[position]} is not in the vocabulary of {vocab_size}"
        raise InvalidArgument(FieldViolation(f"{field}[{position}]", message))


def _accepted(request: router_pb2.GenerateRequest) -> Accepted:
    flush = request.flush
    kind = request.WhichOneof("prompt")
    return Accepted(
        request_id=_request_id(request),
        model=request.model if request.HasField("model") else None,
        text=request.text if kind == "text" else None,
        chat=request.chat if kind == "chat" else None,
        token_ids=packed(request.token_ids.ids[:]) if kind == "token_ids" else None,
        sampling=complete(request.sampling),
        max_tokens=request.max_tokens if request.HasField("max_tokens") else DEFAULT_MAX_TOKENS,
        stops=tuple(request.stop),
        grammar=request.grammar if request.HasField("grammar") else None,
        latency_class=LatencyClass(request.latency_class) if request.latency_class else None,
        completion_s=_given_seconds(request, "completion_deadline"),
        wait=not request.do_not_queue,
        cache_scope=SCOPES[request.cache_scope],
        user=request.user if request.HasField("user") else None,
        flush_delay_s=_given_seconds(flush, "max_delay"),
        flush_tokens=flush.max_tokens if flush.HasField("max_tokens") else None,
        labels=_labels(request.required_labels),
        preferred_labels=_labels(request.preferred_labels),
        sheddable=request.sheddable if request.HasField("sheddable") else None,
        deterministic=request.deterministic,
    )


def _resuming(request: router_pb2.GenerateRequest) -> router_pb2.GenerateRequest:
    """What counts of a resumption: the other fields may hold anything."""
    return router_pb2.GenerateRequest(
        resume=request.resume,
        flush=request.flush if request.HasField("flush") else None,
        completion_deadline=request.completion_deadline if request.HasField("completion_deadline") else None,
    )


def _request_id(request: router_pb2.GenerateRequest) -> str:
    if request.HasField("resume"):
        return request.resume.request_id
    return request.request_id if request.HasField("request_id") else secrets.token_hex(12)


def complete(sampling: types_pb2.SamplingParams) -> types_pb2.SamplingParams:
    """Sampling parameters with every default written out, the seed excepted."""
    found = types_pb2.SamplingParams()
    found.CopyFrom(_DEFAULTS)
    found.MergeFrom(sampling)
    return found


def _labels(told: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(told.items()) if told else NO_LABELS


def _largest(ids: Sequence[int]) -> int:
    if isinstance(ids, array) and len(ids) > MANY_IDS:
        return int(np.frombuffer(ids, np.uint32).max())
    return max(ids)


def _given_seconds(message: Message, name: str) -> float | None:
    return seconds(getattr(message, name)) if message.HasField(name) else None
