"""What each field of a GenerateRequest may be, by the comments of router.proto; answers with violations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from google.protobuf import duration_pb2
from headrace.v1 import router_pb2, types_pb2

from services.common.errors import FieldViolation
from services.router.policy import LatencyClass
from services.router.settings import LimitSettings

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGPROBS = 20
MAX_LABELS, MAX_LABEL_CHARACTERS = 32, 128
MAX_USER_BYTES = 256
_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
_MAX_DEADLINE_S = 315_576_000_000  # what a google.protobuf.Duration may hold: 10,000 years
_MAX_FLUSH_S = 10.0
_MAX_FLUSH_TOKENS = 65_536
_CLASSES = frozenset({types_pb2.LATENCY_CLASS_UNSPECIFIED, *LatencyClass})
SCOPES = {
    types_pb2.CACHE_SCOPE_UNSPECIFIED: types_pb2.CACHE_SCOPE_TENANT,
    types_pb2.CACHE_SCOPE_TENANT: types_pb2.CACHE_SCOPE_TENANT,
    types_pb2.CACHE_SCOPE_USER: types_pb2.CACHE_SCOPE_USER,
    types_pb2.CACHE_SCOPE_NONE: types_pb2.CACHE_SCOPE_NONE,
}


class _Range(NamedTuple):
    """A number's default and bounds; `open_low` excludes the lower one."""

    default: float
    low: float
    high: float
    open_low: bool = False

    def fault(self, value: float) -> str | None:
        fine = value <= self.high and (value > self.low if self.open_low else value >= self.low)
        return None if fine else f"must be in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"


SAMPLING = {
    "temperature": _Range(0.0, 0.0, 100.0),
    "top_p": _Range(1.0, 0.0, 1.0, open_low=True),
    "min_p": _Range(0.0, 0.0, 1.0),
    "repetition_penalty": _Range(1.0, 0.0, 10.0, open_low=True),
    "presence_penalty": _Range(0.0, -2.0, 2.0),
    "frequency_penalty": _Range(0.0, -2.0, 2.0),
}


def violations(request: router_pb2.GenerateRequest, limits: LimitSettings) -> list[FieldViolation]:
    """Everything that is wrong with the request's fields; of a resumption only a few count."""
    if request.HasField("resume"):
        return [
            *_id_faults("resume.request_id", request.resume.request_id),
            *_deadline_faults(request),
            *_flush_faults(request.flush),
        ]
    return [
        *_prompt_faults(request),
        *(_sampling_faults(request.sampling) if request.HasField("sampling") else ()),
        *_stop_faults(request),
        *_output_faults(request, limits),
        *_handling_faults(request),
        *_scope_faults(request),
    ]


def _prompt_faults(request: router_pb2.GenerateRequest) -> list[FieldViolation]:
    kind = request.WhichOneof("prompt")
    if kind is None:
        return [FieldViolation("prompt", "needed: text, chat or token_ids")]
    if kind == "text" and not request.text:
        return [FieldViolation("text", "must not be empty")]
    if kind == "chat":
        return chat_faults(request.chat)
    if kind == "token_ids" and not request.token_ids.ids:
        return [FieldViolation("token_ids.ids", "must not be empty")]
    return []


def chat_faults(chat: types_pb2.ChatMessages) -> list[FieldViolation]:
    """What is wrong with a conversation."""
    if not chat.messages:
        return [FieldViolation("chat.messages", "at least one is needed")]
    return [
        FieldViolation(f"chat.messages[{index}].role", "must not be empty")
        for index, each in enumerate(chat.messages)
        if not each.role
    ]


def _sampling_faults(sampling: types_pb2.SamplingParams) -> list[FieldViolation]:
    found = []
    for field, value in sampling.ListFields():
        bounds = SAMPLING.get(field.name)
        fault = bounds.fault(value) if bounds is not None else None
        if fault is not None:
            found.append(FieldViolation(f"sampling.{field.name}", fault))
    if sampling.logprobs > MAX_LOGPROBS:
        found.append(FieldViolation("sampling.logprobs", f"at most {MAX_LOGPROBS}"))
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        found.append(FieldViolation("sampling.stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS}"))
    return found


def _stop_faults(request: router_pb2.GenerateRequest) -> list[FieldViolation]:
    if len(request.stop) > MAX_STOPS:
        return [FieldViolation("stop", f"at most {MAX_STOPS} strings, not {len(request.stop)}")]
    return [
        FieldViolation(f"stop[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters")
        for index, each in enumerate(request.stop)
        if not 1 <= len(each) <= MAX_STOP_CHARACTERS
    ]


def _output_faults(request: router_pb2.GenerateRequest, limits: LimitSettings) -> list[FieldViolation]:
    found = []
    if request.HasField("max_tokens") and request.max_tokens < 1:
        found.append(FieldViolation("max_tokens", "must be at least 1"))
    if request.HasField("grammar"):
        found += _grammar_faults(request.grammar, limits)
    return found


def _grammar_faults(grammar: types_pb2.Grammar, limits: LimitSettings) -> list[FieldViolation]:
    kind = grammar.WhichOneof("kind")
    if kind is None or not getattr(grammar, kind):
        return [FieldViolation("grammar", "one kind is needed, and not empty")]
    if grammar.ByteSize() > limits.grammar_bytes:
        return [FieldViolation(f"grammar.{kind}", f"at most {limits.grammar_bytes} bytes")]
    if kind == "json_schema" and not _is_schema(grammar.json_schema):
        return [FieldViolation("grammar.json_schema", "must be a JSON object, or true or false")]
    return []


def _is_schema(text: str) -> bool:
    """Whether it could be a schema: a worker knows whether it is one."""
    try:
        return isinstance(json.loads(text), dict | bool)
    except (ValueError, RecursionError):
        return False


def _handling_faults(request: router_pb2.GenerateRequest) -> list[FieldViolation]:
    found = _id_faults("request_id", request.request_id) if request.HasField("request_id") else []
    found += _deadline_faults(request)
    if request.latency_class == types_pb2.LATENCY_CLASS_SYSTEM:
        found.append(FieldViolation("latency_class", "SYSTEM is for the mesh's own probes"))
    elif request.latency_class not in _CLASSES:
        found.append(FieldViolation("latency_class", f"{request.latency_class} is not known"))
    for name in ("required_labels", "preferred_labels"):
        found += _label_faults(name, getattr(request, name))
    return [*found, *_flush_faults(request.flush)] if request.HasField("flush") else found


def _id_faults(field: str, request_id: str) -> list[FieldViolation]:
    if _REQUEST_ID.fullmatch(request_id):
        return []
    return [FieldViolation(field, "must be 1 to 128 printable ASCII characters")]


def _deadline_faults(request: router_pb2.GenerateRequest) -> list[FieldViolation]:
    deadline = request.completion_deadline
    if not request.HasField("completion_deadline") or 0 < seconds(deadline) <= _MAX_DEADLINE_S:
        return []
    return [FieldViolation("completion_deadline", f"must be in (0, {_MAX_DEADLINE_S}] s")]


def _label_faults(name: str, labels: Mapping[str, str]) -> list[FieldViolation]:
    """Labels are kept beside the workers that have them, so they are short."""
    if not labels:
        return []
    if len(labels) > MAX_LABELS:
        return [FieldViolation(name, f"at most {MAX_LABELS}")]
    if any(len(text) > MAX_LABEL_CHARACTERS for each in labels.items() for text in each):
        return [FieldViolation(name, f"names and values have at most {MAX_LABEL_CHARACTERS} characters")]
    return []


def _flush_faults(flush: router_pb2.FlushPolicy) -> list[FieldViolation]:
    found = []
    if flush.HasField("max_delay") and not 0 <= seconds(flush.max_delay) <= _MAX_FLUSH_S:
        found.append(FieldViolation("flush.max_delay", f"must be in [0, {_MAX_FLUSH_S:g}] s"))
    if flush.HasField("max_tokens") and not 1 <= flush.max_tokens <= _MAX_FLUSH_TOKENS:
        found.append(FieldViolation("flush.max_tokens", f"must be in [1, {_MAX_FLUSH_TOKENS}]"))
    return found


def _scope_faults(request: router_pb2.GenerateRequest) -> list[FieldViolation]:
    found = []
    if request.cache_scope not in SCOPES:
        found.append(FieldViolation("cache_scope", f"{request.cache_scope} is not known"))
    if len(request.user.encode()) > MAX_USER_BYTES:
        found.append(FieldViolation("user", f"at most {MAX_USER_BYTES} bytes"))
    if request.cache_scope == types_pb2.CACHE_SCOPE_USER and not request.user:
        found.append(FieldViolation("user", "needed for CACHE_SCOPE_USER"))
    return found


def seconds(duration: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9
