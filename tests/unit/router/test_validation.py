"""Every field of a GenerateRequest: defaults, and exact violations."""

from __future__ import annotations

from typing import Any

import pytest
from headrace.v1 import router_pb2, types_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgument, ResourceExhausted
from services.router.chains import packed
from services.router.settings import LimitSettings
from services.router.validation import MANY_IDS, accept, check_ids, size

LIMITS = LimitSettings()


def request(**fields: Any) -> router_pb2.GenerateRequest:
    return router_pb2.GenerateRequest(**({"text": "x"} | fields))


def violations(message: router_pb2.GenerateRequest) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        accept(message, LIMITS)
    return [each.field for each in caught.value.violations]


def sampling(**fields: Any) -> router_pb2.GenerateRequest:
    return request(sampling=types_pb2.SamplingParams(**fields))


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (router_pb2.GenerateRequest(), ["prompt"]),
        (router_pb2.GenerateRequest(text=""), ["text"]),
        (router_pb2.GenerateRequest(chat={}), ["chat.messages"]),
        (
            router_pb2.GenerateRequest(chat={"messages": [{"role": "", "content": "x"}]}),
            ["chat.messages[0].role"],
        ),
        (router_pb2.GenerateRequest(token_ids={}), ["token_ids.ids"]),
        (sampling(temperature=-1.0), ["sampling.temperature"]),
        (sampling(temperature=float("nan")), ["sampling.temperature"]),
        (sampling(temperature=float("inf")), ["sampling.temperature"]),
        (sampling(temperature=100.5), ["sampling.temperature"]),
        (sampling(top_p=1.5), ["sampling.top_p"]),
        (sampling(top_p=0.0), ["sampling.top_p"]),
        (sampling(min_p=-0.1), ["sampling.min_p"]),
        (sampling(repetition_penalty=0.0), ["sampling.repetition_penalty"]),
        (sampling(presence_penalty=2.5), ["sampling.presence_penalty"]),
        (sampling(frequency_penalty=-2.5), ["sampling.frequency_penalty"]),
        (sampling(logprobs=21), ["sampling.logprobs"]),
        (sampling(stop_token_ids=list(range(2000))), ["sampling.stop_token_ids"]),
        (request(required_labels={str(each): "" for each in range(33)}), ["required_labels"]),
        (request(required_labels={"region": "x" * 129}), ["required_labels"]),
        (request(preferred_labels={"x" * 129: "eu"}), ["preferred_labels"]),
        (request(max_tokens=0), ["max_tokens"]),
        (request(stop=["x"] * 17), ["stop"]),
        (request(stop=["x"] * 10_000), ["stop"]),
        (request(stop=["ok", ""]), ["stop[1]"]),
        (request(stop=["y" * 257]), ["stop[0]"]),
        (request(grammar={}), ["grammar"]),
        (request(grammar={"regex": "a" * 40_000}), ["grammar.regex"]),
        (request(grammar={"json_schema": "{nope"}), ["grammar.json_schema"]),
        (request(grammar={"json_schema": "[]"}), ["grammar.json_schema"]),
        (request(grammar={"json_schema": "[" * 30_000}), ["grammar.json_schema"]),
        (request(latency_class=types_pb2.LATENCY_CLASS_SYSTEM), ["latency_class"]),
        (request(latency_class=99), ["latency_class"]),
        (request(cache_scope=77), ["cache_scope"]),
        (request(request_id=""), ["request_id"]),
        (request(request_id="a\nb"), ["request_id"]),
        (request(request_id="a" * 129), ["request_id"]),
        (request(completion_deadline={"seconds": 0}), ["completion_deadline"]),
        (request(completion_deadline={"seconds": -3}), ["completion_deadline"]),
        (request(completion_deadline={"seconds": 2**63 - 1}), ["completion_deadline"]),
        (request(flush={"max_delay": {"seconds": 11}}), ["flush.max_delay"]),
        (request(flush={"max_tokens": 0}), ["flush.max_tokens"]),
        (request(user="u" * 300), ["user"]),
        (request(cache_scope=types_pb2.CACHE_SCOPE_USER), ["user"]),
        (
            request(max_tokens=0, sampling={"temperature": -1, "top_p": 2}, stop=[""]),
            ["sampling.temperature", "sampling.top_p", "max_tokens", "stop[0]"],
        ),
    ],
)
def test_every_wrong_field_is_named(message: router_pb2.GenerateRequest, fields: list[str]) -> None:
    assert violations(message) == fields


def test_defaults_are_written_out() -> None:
    found = accept(request(), LIMITS)
    assert found.max_tokens == 256
    assert found.wait
    assert found.latency_class is None
    assert found.cache_scope == types_pb2.CACHE_SCOPE_TENANT
    assert found.request_id
    assert found.sampling.top_p == found.sampling.repetition_penalty == 1
    assert found.sampling.HasField("temperature")
    assert found.sampling.HasField("seed")
    assert found.sampling.seed == 0
    assert not found.sampling.HasField("logprobs")


def test_two_requests_without_a_name_get_different_ones() -> None:
    assert accept(request(), LIMITS).request_id != accept(request(), LIMITS).request_id


def test_a_request_beyond_the_size_limit_is_refused() -> None:
    with pytest.raises(ResourceExhausted) as caught:
        size(request(text="x" * (LIMITS.request_bytes + 1)), LIMITS)
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert size(request(text="x" * 10), LIMITS) > 10


def test_what_resumes_needs_a_name_and_no_prompt_and_its_other_fields_are_ignored() -> None:
    resume = {"request_id": "a", "next_index": 3}
    assert accept(router_pb2.GenerateRequest(resume=resume, max_tokens=0), LIMITS).request_id == "a"
    unknown = router_pb2.GenerateRequest(
        resume=resume,
        latency_class=99,  # type: ignore[arg-type]
        cache_scope=77,  # type: ignore[arg-type]
        flush={"max_tokens": 5},
        completion_deadline={"seconds": 3},
    )
    accepted = accept(unknown, LIMITS)
    assert (accepted.latency_class, accepted.flush_tokens, accepted.completion_s) == (None, 5, 3.0)
    with pytest.raises(InvalidArgument, match=r"resume\.request_id"):
        accept(router_pb2.GenerateRequest(resume={"next_index": 3}), LIMITS)


def test_greedy_and_top_1_are_reproducible_and_nothing_else() -> None:
    assert accept(request(), LIMITS).reproducible
    assert accept(sampling(temperature=1, top_k=1), LIMITS).reproducible
    assert not accept(sampling(temperature=1, seed=7), LIMITS).reproducible


def test_ids_outside_the_vocabulary_are_named_by_place() -> None:
    for more in (0, MANY_IDS):
        ids = packed([0, *[1] * more, 511])
        check_ids("token_ids.ids", ids, 512)
        with pytest.raises(InvalidArgument) as caught:
            check_ids("token_ids.ids", ids, 511)
        [violation] = caught.value.violations
        assert violation.field == f"token_ids.ids[{1 + more}]"


FLOATS = st.floats(width=32)


@settings(deadline=None)
@given(
    temperature=FLOATS,
    top_p=FLOATS,
    penalty=FLOATS,
    max_tokens=st.integers(0, 2**32 - 1),
    latency_class=st.integers(-5, 9),
    seconds=st.integers(-5, 5),
)
def test_whatever_is_accepted_is_in_range(
    temperature: float, top_p: float, penalty: float, max_tokens: int, latency_class: int, seconds: int
) -> None:
    message = request(
        sampling={"temperature": temperature, "top_p": top_p, "repetition_penalty": penalty},
        max_tokens=max_tokens,
        latency_class=latency_class,
        completion_deadline={"seconds": seconds},
    )
    try:
        found = accept(message, LIMITS)
    except InvalidArgument:
        return
    assert 0 <= found.sampling.temperature <= 100
    assert 0 < found.sampling.top_p <= 1
    assert 0 < found.sampling.repetition_penalty <= 10
    assert found.max_tokens >= 1
    assert found.completion_s is not None
    assert found.completion_s > 0
