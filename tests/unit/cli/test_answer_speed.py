"""What `headrace generate` says of an answer's speed."""

from __future__ import annotations

from headrace.v1 import router_pb2, types_pb2

from services.cli.generate import speed


def ended(tokens: int, *, cached: bool = False) -> router_pb2.Finished:
    usage = types_pb2.Usage(output_tokens=tokens)
    return router_pb2.Finished(usage=usage, cached_response=cached)


def test_an_answer_that_streams_has_a_rate() -> None:
    assert speed(ended(43), 0.5, 2.0) == "[43 tokens, the first after 0.50 s, then 21 a second]"


def test_an_answer_that_comes_at_once_has_none() -> None:
    assert speed(ended(43), 0.5, 0.0) == "[43 tokens, the first after 0.50 s]"


def test_an_answer_of_the_response_cache_says_so() -> None:
    assert speed(ended(43, cached=True), 0.001, 0.0006) == "[43 tokens, from the response cache]"
