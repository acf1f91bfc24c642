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
from services.router.rules import OF_A_RESUMPTION, SAMPLING, SCOPES, Given, given, seconds, violations
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
    """Complete."""
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
    fields = given(request)
    found = violations(fields, limits)
    if found:
        raise InvalidArgument(*found)
    return _accepted(_resuming(fields) if "resume" in fields else fields)


def revived(request: router_pb2.GenerateRequest) -> Accepted:
    """A request that another router has accepted; it has no prompt."""
    return _accepted(given(request))


def check_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises InvalidArgument for ids that are not in the vocabulary."""
    if ids and _largest(ids) >= vocab_size:
        position = next(index for index, each in enumerate(ids) if each >= vocab_size)
        message = f"{ids[position]} is not in the vocabulary of {vocab_size}"
        raise InvalidArgument(FieldViolation(f"{field}[{position}]", message))


def _accepted(fields: Given) -> Accepted:
    told = fields.get
    token_ids, flush = told("token_ids"), told("flush")
    asked, deadline = told("latency_class"), told("completion_deadline")
    return Accepted(
        request_id=_request_id(fields),
        model=told("model"),
        text=told("text"),
        chat=told("chat"),
        token_ids=packed(token_ids.ids[:]) if token_ids is not None else None,
        sampling=complete(told("sampling")),
        max_tokens=told("max_tokens", DEFAULT_MAX_TOKENS),
        stops=tuple(told("stop", ())),
        grammar=told("grammar"),
        latency_class=LatencyClass(asked) if asked else None,
        completion_s=seconds(deadline) if deadline is not None else None,
        wait=not told("do_not_queue"),
        cache_scope=SCOPES[told("cache_scope", types_pb2.CACHE_SCOPE_UNSPECIFIED)],
        user=told("user"),
        flush_delay_s=seconds(flush.max_delay) if flush and flush.HasField("max_delay") else None,
        flush_tokens=flush.max_tokens if flush and flush.HasField("max_tokens") else None,
        labels=_labels(told("required_labels")),
        preferred_labels=_labels(told("preferred_labels")),
        sheddable=told("sheddable"),
        deterministic=told("deterministic", False),
    )


def _resuming(fields: Given) -> Given:
    """What counts of a resumption: the other fields may hold anything."""
    return {name: value for name, value in fields.items() if name in OF_A_RESUMPTION}


def _request_id(fields: Given) -> str:
    if "resume" in fields:
        return str(fields["resume"].request_id)
    return fields.get("request_id") or secrets.token_hex(12)


def complete(sampling: types_pb2.SamplingParams | None) -> types_pb2.SamplingParams:
    """Sampling parameters with every default written out, and a seed: of greedy ones 0, else a fresh one."""
    found = types_pb2.SamplingParams()
    found.CopyFrom(_DEFAULTS)
    if sampling is not None:
        found.MergeFrom(sampling)
    if not found.HasField("seed"):
        found.seed = secrets.randbits(64) if found.temperature > 0 else 0
    return found


def _labels(told: Mapping[str, str] | None) -> frozenset[tuple[str, str]]:
    return frozenset(told.items()) if told else NO_LABELS


def _largest(ids: Sequence[int]) -> int:
    if isinstance(ids, array) and len(ids) > MANY_IDS:
        return int(np.frombuffer(ids, np.uint32).max())
    return max(ids)
