"""Whatever arrives, is aborted or preempted: no token lost or doubled, blocks conserve, one end each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.scheduler.events import Finished
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import FinishReason, LatencyClass, Merge, Request
from services.worker.scheduler.step import Capabilities, KVSpec
from tests.support.drive import Drive
from tests.support.fake_runner import VOCAB, FakeRunner, expected_output

MAX_LEN = 96


@dataclass(frozen=True)
class Arrival:
    turn: int
    prompt_len: int
    prompt_kind: int  # prompts of one kind share their beginning
    max_tokens: int
    latency_class: LatencyClass
    delivered: int
    abort_after: int | None
    deadline_after: int | None
    merge: Merge | None


arrivals = st.builds(
    Arrival,
    turn=st.integers(0, 60),
    prompt_len=st.integers(1, 80),
    prompt_kind=st.integers(0, 2),
    max_tokens=st.integers(1, 40),
    latency_class=st.sampled_from(LatencyClass),
    delivered=st.sampled_from([0, 0, 0, 1, 5]),
    abort_after=st.one_of(st.none(), st.none(), st.integers(0, 30)),
    deadline_after=st.one_of(st.none(), st.none(), st.integers(0, 60)),
    merge=st.sampled_from([None, Merge(3, 1.0), Merge(64, 0.05), Merge(2, 0.02)]),
)


def request_of(handle: int, arrival: Arrival, now: float) -> Request:
    ids = np.random.default_rng(arrival.prompt_kind).integers(0, VOCAB, MAX_LEN, dtype=np.int32)
    prompt = ids[: arrival.prompt_len]
    bare = Request(handle=handle, prompt=prompt, max_tokens=arrival.max_tokens, arrival_s=now)
    delivered = expected_output(bare, MAX_LEN)[: arrival.delivered]
    return Request(
        handle=handle,
        prompt=prompt,
        max_tokens=arrival.max_tokens,
        arrival_s=now,
        delivered=np.array(delivered, np.int32),
        latency_class=arrival.latency_class,
        kv_key=b"k" * 32 if arrival.prompt_kind else b"",
        deadline_s=None if arrival.deadline_after is None else now + arrival.deadline_after * 0.01,
        merge=arrival.merge,
    )


@settings(max_examples=120, deadline=None)
@given(
    arrivals=st.lists(arrivals, min_size=1, max_size=20),
    blocks=st.integers(12, 40),
    max_seqs=st.integers(1, 6),
    max_chunk=st.sampled_from([5, 32, 512]),
    run_ahead=st.integers(0, 1),
    chunked=st.booleans(),
)
def test_no_token_is_lost_or_doubled_and_every_request_ends_once(
    arrivals: list[Arrival], blocks: int, max_seqs: int, max_chunk: int, run_ahead: int, chunked: bool
) -> None:
    spec = KVSpec(block_size=8, num_blocks=blocks, max_seqs=max_seqs, max_len=MAX_LEN)
    runner = FakeRunner(spec, Capabilities(run_ahead=run_ahead, chunked_prefill=chunked))
    drive = Drive(runner, SchedulerSettings(max_chunk=max_chunk, min_chunk=4, batch_ageing_s=0.5))
    requests: dict[int, Request] = {}
    for turn in range(100):
        for handle, arrival in enumerate(arrivals):
            if arrival.turn == turn:
                requests[handle] = request_of(handle, arrival, drive.now)
                drive.add(requests[handle])
            if arrival.abort_after is not None and arrival.turn + arrival.abort_after == turn:
                drive.scheduler.abort(handle, drive.now)
        if turn == 50:
            for handle in requests:
                drive.scheduler.merge(handle, Merge(4, 1.0) if handle % 2 else None)
        drive.turn()
        drive.scheduler.check()
    drive.run()
    drive.scheduler.check()
    for handle, request in requests.items():
        check_story(drive, request, arrivals[handle].abort_after is not None)
    assert drive.scheduler.load().blocks_held == 0


def check_story(drive: Drive, request: Request, may_be_aborted: bool) -> None:
    story = drive.stories[request.handle]
    assert len(story.terminals) == 1
    terminal = story.terminals[0]
    assert isinstance(terminal, Finished)
    expected = expected_output(request, MAX_LEN)
    output = [*request.delivered.tolist(), *story.tokens]
    assert terminal.usage.output_tokens == len(output)
    assert output == expected[: len(output)]
    if terminal.reason is FinishReason.CANCELLED:
        assert may_be_aborted
    elif terminal.reason is FinishReason.DEADLINE:
        assert request.deadline_s is not None
    else:
        assert output == expected
