"""From what a caller writes to the message that is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, TypeVar

from google.protobuf import duration_pb2

from headrace.v1 import router_pb2, types_pb2

Message: TypeAlias = Mapping[str, str] | tuple[str, str]
"""A turn of a chat: {"role": …, "content": …} or (role, content)."""
_TURN = ("role", "content")
Value = TypeVar("Value")
LatencyClass = Literal["interactive", "standard", "batch"]
CacheScope = Literal["tenant", "user", "none"]
CACHE_SCOPES = {
    "tenant": types_pb2.CACHE_SCOPE_TENANT,
    "user": types_pb2.CACHE_SCOPE_USER,
    "none": types_pb2.CACHE_SCOPE_NONE,
}
LATENCY_CLASSES = {
    "interactive": types_pb2.LATENCY_CLASS_INTERACTIVE,
    "standard": types_pb2.LATENCY_CLASS_STANDARD,
    "batch": types_pb2.LATENCY_CLASS_BATCH,
}
_PLAIN = (
    "model",
    "max_tokens",
    "request_id",
    "do_not_queue",
    "user",
    "required_labels",
    "preferred_labels",
    "sheddable",
    "deterministic",
)
_SAMPLING = frozenset(field.name for field in types_pb2.SamplingParams.DESCRIPTOR.fields)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to answer; a field left None means the mesh's default (see `headrace/v1/router.proto`).

    Beside them the fields of SamplingParams are options, too: temperature, top_p, seed, …
    """

    model: str | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    latency_class: LatencyClass | None = None
    request_id: str | None = None
    completion_deadline_s: float | None = None
    do_not_queue: bool | None = None
    cache_scope: CacheScope | None = None
    user: str | None = None
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    lark: str | None = None
    required_labels: Mapping[str, str] | None = None
    preferred_labels: Mapping[str, str] | None = None
    sheddable: bool | None = None
    deterministic: bool | None = None


_NAMES = sorted({each.name for each in fields(Options)} | _SAMPLING)


def build_request(
    prompt: str | None = None,
    messages: Sequence[Message] | None = None,
    token_ids: Iterable[int] | None = None,
    **options: Any,
) -> router_pb2.GenerateRequest:
    """The message for a prompt and options.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that no message holds; it names the option.
    """
    sampling = {name: options.pop(name) for name in list(options) if name in _SAMPLING}
    _check_names(options)
    chosen = Options(**options)
    request = router_pb2.GenerateRequest()
    _put(request, {name: getattr(chosen, name) for name in _PLAIN} | {"stop": list(chosen.stop)})
    put_prompt(request, prompt, messages, token_ids)
    if any(value is not None for value in sampling.values()):
        _put(request.sampling, sampling)
    _put_limits(request, chosen)
    return request


def _check_names(options: Iterable[str]) -> None:
    """Raises TypeError for an option that does not exist, with those that are like it, or all."""
    for name in options:
        if name not in _NAMES:
            nearest = get_close_matches(name, _NAMES)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(_NAMES)}"
            raise TypeError(f"{name} is no option; {hint}")


def _put(message: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is not None:
            with _named(name):
                message.MergeFrom(type(message)(**{name: value}))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """protobuf says what is wrong with a value, but not of which field."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def put_prompt(
    request: Any,
    prompt: str | None,
    messages: Sequence[Message] | None,
    token_ids: Iterable[int] | None,
) -> None:
    """Sets the one prompt that is given. TypeError: none or several. ValueError: as `build_request`."""
    if sum(each is not None for each in (prompt, messages, token_ids)) != 1:
        raise TypeError("give exactly one of prompt, messages and token_ids")
    if messages is not None:
        turns = [_turn(f"messages[{index}]", each) for index, each in enumerate(messages)]
        request.chat.CopyFrom(types_pb2.ChatMessages(messages=turns))
        return
    with _named("prompt" if prompt is not None else "token_ids"):
        if prompt is not None:
            request.text = prompt
        elif token_ids is not None:
            request.token_ids.CopyFrom(types_pb2.TokenIds(ids=list(token_ids)))


def _turn(path: str, message: Message) -> types_pb2.ChatMessage:
    """A turn that has a role and a content and nothing else: what it lacks would be sent as nothing."""
    turn = dict(zip(_TURN, message, strict=False)) if isinstance(message, tuple) else message
    if not isinstance(turn, Mapping):
        raise ValueError(f"{path}: {turn!r} is no message with role and content")
    for name in _TURN:
        if not isinstance(turn.get(name), str):
            raise ValueError(f"{path}.{name}: text is needed, not {turn.get(name)!r}")
    if strange := sorted(turn.keys() - set(_TURN)):
        raise ValueError(f"{path}.{strange[0]}: a message has {' and '.join(_TURN)}")
    with _named(path):
        return types_pb2.ChatMessage(**turn)


def _put_limits(request: router_pb2.GenerateRequest, options: Options) -> None:
    if options.latency_class is not None:
        request.latency_class = _one_of("latency_class", LATENCY_CLASSES, options.latency_class)
    if options.cache_scope is not None:
        request.cache_scope = _one_of("cache_scope", CACHE_SCOPES, options.cache_scope)
    if options.completion_deadline_s is not None:
        with _named("completion_deadline_s"):
            request.completion_deadline.CopyFrom(_duration(options.completion_deadline_s))
    if (grammar := _grammar(options)) is not None:
        request.grammar.CopyFrom(grammar)


def _one_of(name: str, values: Mapping[str, Value], given: str) -> Value:
    if given not in values:
        raise ValueError(f"{name}: {given!r} is not one of {', '.join(values)}")
    return values[given]


def _duration(seconds: float) -> duration_pb2.Duration:
    found = duration_pb2.Duration()
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is no time")
    found.FromMilliseconds(int(seconds * 1000))
    return found


def _grammar(options: Options) -> types_pb2.Grammar | None:
    """What the answer must match. Raises TypeError for several."""
    schema = options.json_schema
    text = schema if schema is None or isinstance(schema, str) else json.dumps(schema)
    kinds = {"json_schema": text, "regex": options.regex, "lark": options.lark}
    given = {kind: value for kind, value in kinds.items() if value is not None}
    if len(given) > 1:
        raise TypeError(f"give at most one of {', '.join(given)}")
    grammar = types_pb2.Grammar()
    _put(grammar, given)
    return grammar if given else None
