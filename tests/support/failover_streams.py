"""Streams of every kind for tests of failover, and what they say when nothing happens to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from headrace.v1 import router_pb2, types_pb2

from services.common.text import IncrementalDecoder
from tests.support.flights import TABLE
from tests.support.router_house import Answer

Logprobs = Sequence[types_pb2.PositionLogprobs]
NEAR = 1e-4
OFFSETS = range(16)
TOKENS = 40
SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 100, "maximum": 999},
    "minItems": 9,
    "maxItems": 9,
}


class Key(NamedTuple):
    """One stream: its kind, and the output index at which harm is to come."""

    kind: str
    offset: int


def _request(offset: int, **sampling: object) -> router_pb2.GenerateRequest:
    made = router_pb2.GenerateRequest(max_tokens=TOKENS, latency_class=types_pb2.LATENCY_CLASS_STANDARD)
    made.token_ids.ids.extend([20 + offset, 30, 40 + 3 * offset])
    made.sampling.CopyFrom(types_pb2.SamplingParams(ignore_eos=True, seed=1000 + offset, **sampling))  # type: ignore[arg-type]
    return made


def _schema(offset: int) -> router_pb2.GenerateRequest:
    made = _request(offset, temperature=1.0)
    made.max_tokens = 2 * TOKENS
    made.grammar.json_schema = json.dumps(SCHEMA)
    return made


KINDS: dict[str, Callable[[int], router_pb2.GenerateRequest]] = {
    "greedy": lambda offset: _request(offset, temperature=0.0),
    "sampled": lambda offset: _request(offset, temperature=0.9, top_p=0.95),
    "penalties": lambda offset: _request(
        offset, temperature=0.8, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3
    ),
    "logprobs": lambda offset: _request(offset, temperature=0.9, logprobs=3),
    "schema": _schema,
}


def streams() -> dict[Key, router_pb2.GenerateRequest]:
    """All kinds but stop strings, which need to know what the others say."""
    return {Key(kind, offset): made(offset) for kind, made in KINDS.items() for offset in OFFSETS}


def stopped(undisturbed: Mapping[Key, Answer]) -> dict[Key, router_pb2.GenerateRequest]:
    """The sampled streams with a stop string each, which begins before the border and ends after it."""
    found = {}
    for offset in OFFSETS:
        made = KINDS["sampled"](offset)
        made.stop.append(across(undisturbed[Key("sampled", offset)].ids, offset))
        found[Key("stops", offset)] = made
    return found


def across(ids: list[int], offset: int) -> str:
    """Text of the tokens on both sides of an offset that does not come before."""
    decoder = IncrementalDecoder(TABLE)
    parts = [decoder.push(each) for each in ids]
    text, border = "".join(parts), len("".join(parts[:offset]))
    for width in range(1, 12):
        start, stop = max(0, border - width), text[max(0, border - width) : border + width]
        if text.find(stop) == start and stop.strip():
            return stop
    raise AssertionError(f"everything around offset {offset} repeats what came before")


def differences(got: Mapping[Key, Answer], expected: Mapping[Key, Answer]) -> Iterator[str]:
    """One line for each stream that is not what it is without harm."""
    for key, answer in got.items():
        if answer.error is not None:
            yield f"{key}: {answer.error.code()}, {answer.error.details()}"
            continue
        told, wanted = _told(answer), _told(expected[key])
        yield from (
            f"{key}: {name}: {told[name]} != {wanted[name]}" for name in told if told[name] != wanted[name]
        )
        if not _near(answer.logprobs, expected[key].logprobs):
            yield f"{key}: log-probabilities"


def _told(answer: Answer) -> dict[str, object]:
    """All that a client is told and that does not depend on time or place."""
    finished = answer.finished
    assert finished is not None
    return {
        "ids": answer.ids,
        "text": answer.text,
        "finish_reason": finished.finish_reason,
        "stop": (finished.WhichOneof("stop_match"), finished.stop_string, finished.stop_token_id),
        "prompt_tokens": finished.usage.prompt_tokens,
        "output_tokens": finished.usage.output_tokens,
        "seed": finished.seed,
    }


def _near(one: Logprobs, other: Logprobs) -> bool:
    """Whether they are equal, as far as fp32 goes: a product over other rows may add up in another order."""
    return len(one) == len(other) and all(
        abs(here.chosen - there.chosen) < NEAR
        and [each.token_id for each in here.top] == [each.token_id for each in there.top]
        and all(abs(a.logprob - b.logprob) < NEAR for a, b in zip(here.top, there.top, strict=True))
        for here, there in zip(one, other, strict=True)
    )
