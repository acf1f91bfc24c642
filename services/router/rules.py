"""What each field of a GenerateRequest may be, by the comments of router.proto; answers with violations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from google.protobuf import duration_pb2
from google.protobuf.message import Message
from headrace.v1 import router_pb2, types_pb2

from services.common.errors import FieldViolation
from services.router.policy import LatencyClass
from services.router.settings import LimitSettings

Faults = Sequence[FieldViolation]
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


Given = Mapping[str, Any]
"""A request's fields that are set, by name."""


def given(request: Message) -> Given:
    """Those of a message. Most are not set, and to ask each for itself would cost."""
    return {field.name: value for field, value in request.ListFields()}


def violations(fields: Given, limits: LimitSettings) -> list[FieldViolation]:
    """Everything that is wrong with a request's fields; of a resumption only a few count."""
    resumes = "resume" in fields
    rules = OF_A_RESUMPTION if resumes else _RULES
    found = [] if resumes else _missing(fields)
    for name, value in fields.items():
        rule = rules.get(name)
        if rule is not None:
            found += rule(value, limits)
    return found


def _missing(fields: Given) -> list[FieldViolation]:
    if "text" not in fields and "token_ids" not in fields and "chat" not in fields:
        return [FieldViolation("prompt", "needed: text, chat or token_ids")]
    if fields.get("cache_scope") == types_pb2.CACHE_SCOPE_USER and not fields.get("user"):
        return [FieldViolation("user", "needed for CACHE_SCOPE_USER")]
    return []


def _text_faults(text: str, _: LimitSettings) -> Faults:
    return () if text else (FieldViolation("text", "must not be empty"),)


def _ids_faults(token_ids: types_pb2.TokenIds, _: LimitSettings) -> Faults:
    return () if token_ids.ids else (FieldViolation("token_ids.ids", "must not be empty"),)


def chat_faults(chat: types_pb2.ChatMessages) -> Faults:
    """What is wrong with a conversation."""
    if not chat.messages:
        return [FieldViolation("chat.messages", "at least one is needed")]
    return [
        FieldViolation(f"chat.messages[{index}].role", "must not be empty")
        for index, each in enumerate(chat.messages)
        if not each.role
    ]


def _sampling_faults(sampling: types_pb2.SamplingParams, _: LimitSettings) -> Faults:
    found = []
    for name, value in given(sampling).items():
        bounds = SAMPLING.get(name)
        fault = bounds.fault(value) if bounds is not None else None
        if fault is not None:
            found.append(FieldViolation(f"sampling.{name}", fault))
        if name == "logprobs" and value > MAX_LOGPROBS:
            found.append(FieldViolation("sampling.logprobs", f"at most {MAX_LOGPROBS}"))
        if name == "stop_token_ids" and len(value) > MAX_STOP_TOKEN_IDS:
            found.append(FieldViolation("sampling.stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS}"))
    return found


def _stop_faults(stop: Sequence[str], _: LimitSettings) -> Faults:
    if len(stop) > MAX_STOPS:
        return [FieldViolation("stop", f"at most {MAX_STOPS} strings, not {len(stop)}")]
    return [
        FieldViolation(f"stop[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters")
        for index, each in enumerate(stop)
        if not 1 <= len(each) <= MAX_STOP_CHARACTERS
    ]


def _length_faults(max_tokens: int, _: LimitSettings) -> Faults:
    return () if max_tokens >= 1 else (FieldViolation("max_tokens", "must be at least 1"),)


def _grammar_faults(grammar: types_pb2.Grammar, limits: LimitSettings) -> Faults:
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


def _class_faults(latency_class: int, _: LimitSettings) -> Faults:
    if latency_class == types_pb2.LATENCY_CLASS_SYSTEM:
        return [FieldViolation("latency_class", "SYSTEM is for the mesh's own probes")]
    if latency_class not in _CLASSES:
        return [FieldViolation("latency_class", f"{latency_class} is not known")]
    return []


def _id_faults(request_id: str, _: LimitSettings, field: str = "request_id") -> Faults:
    if _REQUEST_ID.fullmatch(request_id):
        return []
    return [FieldViolation(field, "must be 1 to 128 printable ASCII characters")]


def _resume_faults(resume: router_pb2.Resume, limits: LimitSettings) -> Faults:
    return _id_faults(resume.request_id, limits, "resume.request_id")


def _deadline_faults(deadline: duration_pb2.Duration, _: LimitSettings) -> Faults:
    if 0 < seconds(deadline) <= _MAX_DEADLINE_S:
        return []
    return [FieldViolation("completion_deadline", f"must be in (0, {_MAX_DEADLINE_S}] s")]


def _label_faults(name: str, labels: Mapping[str, str], _: LimitSettings) -> Faults:
    """Labels are kept beside the workers that have them, so they are short."""
    if len(labels) > MAX_LABELS:
        return [FieldViolation(name, f"at most {MAX_LABELS}")]
    if any(len(text) > MAX_LABEL_CHARACTERS for each in labels.items() for text in each):
        return [FieldViolation(name, f"names and values have at most {MAX_LABEL_CHARACTERS} characters")]
    return []


def _flush_faults(flush: router_pb2.FlushPolicy, _: LimitSettings) -> Faults:
    found = []
    if flush.HasField("max_delay") and not 0 <= seconds(flush.max_delay) <= _MAX_FLUSH_S:
        found.append(FieldViolation("flush.max_delay", f"must be in [0, {_MAX_FLUSH_S:g}] s"))
    if flush.HasField("max_tokens") and not 1 <= flush.max_tokens <= _MAX_FLUSH_TOKENS:
        found.append(FieldViolation("flush.max_tokens", f"must be in [1, {_MAX_FLUSH_TOKENS}]"))
    return found


def _scope_faults(cache_scope: int, _: LimitSettings) -> Faults:
    return () if cache_scope in SCOPES else (FieldViolation("cache_scope", f"{cache_scope} is not known"),)


def _user_faults(user: str, _: LimitSettings) -> Faults:
    if len(user.encode()) <= MAX_USER_BYTES:
        return []
    return [FieldViolation("user", f"at most {MAX_USER_BYTES} bytes")]


def seconds(duration: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


_Rule = Callable[[Any, LimitSettings], Faults]
OF_A_RESUMPTION: dict[str, _Rule] = {
    "resume": _resume_faults,
    "completion_deadline": _deadline_faults,
    "flush": _flush_faults,
}
_RULES: dict[str, _Rule] = {
    "text": _text_faults,
    "chat": lambda chat, _: chat_faults(chat),
    "token_ids": _ids_faults,
    "sampling": _sampling_faults,
    "max_tokens": _length_faults,
    "stop": _stop_faults,
    "grammar": _grammar_faults,
    "latency_class": _class_faults,
    "request_id": _id_faults,
    "completion_deadline": _deadline_faults,
    "cache_scope": _scope_faults,
    "user": _user_faults,
    "flush": _flush_faults,
    "required_labels": partial(_label_faults, "required_labels"),
    "preferred_labels": partial(_label_faults, "preferred_labels"),
}
