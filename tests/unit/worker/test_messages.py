"""What crosses between the engine's process and the worker's comes out as it went in."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from services.worker.engine.report import Commands
from services.worker.scheduler.events import NO_OUTPUTS, KVEvents, OutputLogprobs, Outputs, TokenLogprobs
from services.worker.scheduler.request import Grammar, LatencyClass, Request, Sampling

LOGPROBS = OutputLogprobs(
    np.array([0, 2], np.int32),
    np.array([2, 0], np.int32),
    np.array([-0.5, -1.5], np.float32),
    np.array([[7, 8], [9, 10]], np.int32),
    np.array([[-0.5, -0.75], [-1.25, -1.5]], np.float32),
)
LATER = replace(
    LOGPROBS,
    rows=np.array([3], np.int32),
    counts=LOGPROBS.counts[1:],
    chosen=LOGPROBS.chosen[1:],
    top_ids=LOGPROBS.top_ids[1:],
    top=LOGPROBS.top[1:],
)
OUTPUTS = Outputs(
    np.array([2**40, 2**40, 3], np.int64),
    np.array([5, 6, 0], np.int32),
    np.array([7, 1, 9], np.int32),
    (LOGPROBS,),
)
REQUEST = Request(
    handle=2**40,
    prompt=np.array([1, 2, 3], np.int32),
    max_tokens=4,
    arrival_s=1.25,
    sampling=Sampling(seed=2**64 - 1, stop_token_ids=(5,), logprobs=0),
    grammar=Grammar("regex", "a+"),
    latency_class=LatencyClass.BATCH,
    kv_key=b"k" * 32,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(
            same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one)
        )
    return bool(one == other)


@pytest.mark.parametrize(
    "message",
    [
        OUTPUTS,
        NO_OUTPUTS,
        KVEvents(3, np.array([True, False]), (b"a" * 32, b"b" * 32)),
        REQUEST,
        Commands(last_number=3, submits=[REQUEST, REQUEST], aborts=[1], drain=True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_comes_out_as_it_went_in(message: Any) -> None:
    assert same(message, pickle.loads(pickle.dumps(message, pickle.HIGHEST_PROTOCOL)))


def test_each_token_has_the_log_probabilities_that_its_request_asked_for() -> None:
    outputs = Outputs(
        np.array([4, 5, 6, 6], np.int64),
        np.array([0, 0, 0, 1], np.int32),
        np.array([7, 1, 9, 9], np.int32),
        (LOGPROBS, LATER),
    )
    asked, not_asked, *twice = [each.logprobs for each in outputs]
    assert asked == TokenLogprobs(-0.5, (7, 8), (-0.5, -0.75))
    assert not_asked is None
    assert twice == [TokenLogprobs(-1.5, (), ())] * 2
