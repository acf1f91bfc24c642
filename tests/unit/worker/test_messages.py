"""What crosses between the engine's process and the worker's comes out as it went in."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from services.worker.engine.report import Commands, Progress, StepReport, TokenReport, Work
from services.worker.engine.wire import packed, unpacked
from services.worker.scheduler.budget import PRIOR
from services.worker.scheduler.events import (
    NO_KV_EVENTS,
    NO_OUTPUTS,
    NO_TERMINALS,
    Credits,
    Finished,
    KVEvents,
    KVSnapshot,
    Load,
    OutputLogprobs,
    Outputs,
    Rejected,
    RejectReason,
    Returned,
    Room,
    Served,
    Terminals,
    Timings,
    TokenLogprobs,
    Usage,
)
from services.worker.scheduler.request import FinishReason, Grammar, LatencyClass, Request, Sampling

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
RESUMED = replace(
    REQUEST,
    sampling=Sampling(),
    grammar=None,
    delivered=np.array([4], np.int32),
    latency_class=LatencyClass.SYSTEM,
    deadline_s=2.5,
    ttft_target_s=0.5,
    tpot_target_s=0.25,
    public_kv_key=b"p" * 32,
    public_prefix_tokens=64,
    expected_output_tokens=3,
    tenant=b"t" * 16,
    session=2,
)
FINISHED = Finished(3, FinishReason.EOS, Usage(1, 2, 3, 4, 5), Timings(0.5, 0.25, 0.125), 7)
REJECTED = Rejected(4, RejectReason.TOO_LONG, "too long")
REPORT = StepReport(
    last_command=2**40,
    load=Load(1, 2, 3, 4, 5, 6, 15, 7, 8),
    credits=Credits(1, 2, 3, {4: 5}, Room(6, 7, 8)),
    progress=Progress(9, True, 1.5, 2, 3, 0.25, Work(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)),
    step_model=PRIOR,
    outputs=OUTPUTS,
    terminals=Terminals(returned=(Returned(3, 4),)),
    kv=KVEvents(3, np.array([True, False]), (b"a" * 32, b"b" * 32)),
    kv_snapshot=KVSnapshot(4, (b"a" * 32,)),
    served={b"t" * 16: Served(1, 2), b"u" * 16: Served(0, 3)},
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
        REPORT,
        REPORT.without_news(),
        replace(REPORT, outputs=Outputs(OUTPUTS.handles, OUTPUTS.indices, OUTPUTS.tokens)),
        TokenReport(replace(OUTPUTS, logprobs=()), Progress(2**40, True, 1.75, 2, 3, 0.25)),
        TokenReport(NO_OUTPUTS, Progress(10, False, 1.75, 2, 2, 0.25)),
        replace(REPORT, terminals=Terminals((FINISHED,), (REJECTED,))),
        Commands(last_number=3, submits=[REQUEST, RESUMED], aborts=[1], drain=True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_comes_out_as_it_went_in(message: Any) -> None:
    assert same(message, unpacked(packed(message)))


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


def test_what_a_report_lacks_is_nothing_after_the_journey() -> None:
    bare = unpacked(packed(REPORT.without_news()))
    assert isinstance(bare, StepReport)
    assert (bare.outputs, bare.terminals, bare.kv) == (NO_OUTPUTS, NO_TERMINALS, NO_KV_EVENTS)
    assert (bare.kv_snapshot, bare.served) == (None, {})
    assert type(bare.progress.work) is Work
    assert type(bare.credits.foreground) is Room


def test_a_step_with_nothing_but_tokens_leaves_the_state_as_it_was() -> None:
    after = REPORT.then(TokenReport(OUTPUTS, Progress(10, False, 1.75, 4, 4, 0.5)))
    assert after.outputs is OUTPUTS
    assert after.progress == (10, False, 1.75, 4, 4, 0.5, REPORT.progress.work)
    assert (after.load, after.credits, after.last_command) == (
        REPORT.load,
        REPORT.credits,
        REPORT.last_command,
    )
    assert (after.terminals, after.kv, after.served) == (NO_TERMINALS, NO_KV_EVENTS, {})
