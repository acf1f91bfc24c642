"""Frames keep to 64 KiB, and what waits to tokens, under the worst that engine and routers may do."""

from __future__ import annotations

import pytest
from headrace.v1 import session_pb2 as pb
from headrace.v1 import types_pb2

from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.events import Load, Served, TokenLogprobs
from services.worker.session.job import Job
from services.worker.session.outgoing import MESSAGE_CHARS, Outgoing
from tests.support.session_engine import RecordingEngine, kv

LIMIT = 64 << 10
LARGE = 2**32 - 1
MOST_SEQUENCES = 4096  # what `max_seqs` may be


def jobs_of(count: int) -> list[Job]:
    first = LARGE - MOST_SEQUENCES
    return [
        Job(slot, pb.Submit(slot=slot, request_id=f"r{slot}", attempt=LARGE, next_index=first))
        for slot in range(first, first + count)
    ]


def worst_end() -> pb.SequenceEnd:
    return pb.SequenceEnd(
        reason=pb.END_REASON_ERROR,
        stop_token_id=LARGE,
        usage=types_pb2.Usage(prompt_tokens=LARGE, cached_tokens=LARGE, output_tokens=LARGE),
        queue_us=2**64 - 1,
        prefill_us=2**64 - 1,
        decode_us=2**64 - 1,
        message="\U0001f300" * MESSAGE_CHARS,
    )


def frames_of(outgoing: Outgoing) -> list[pb.WorkerFrame]:
    """All that waits, each frame with the largest numbers and credits."""
    frames = []
    while not outgoing.empty:
        frame = pb.WorkerFrame(number=2**64 - 1, acknowledged_command=2**64 - 1)
        outgoing.fill(frame)
        for credit in (frame.credit, frame.foreground_credit):
            credit.prefill_tokens, credit.sequences, credit.kv_blocks = 2**64 - 1, LARGE, LARGE
        assert frame.ByteSize() <= LIMIT
        frames.append(frame)
        assert len(frames) < 10_000
    return frames


@pytest.mark.parametrize("columns", [False, True])
def test_a_step_of_as_many_sequences_as_there_may_be_is_told_whole(columns: bool) -> None:
    outgoing, jobs = Outgoing(columns=columns), jobs_of(MOST_SEQUENCES)
    for job in jobs:
        job.append(job.made, LARGE)
        outgoing.line[job.handle] = job
    frames = frames_of(outgoing)
    told = [update.slot for frame in frames for update in frame.updates]
    told += [slot for frame in frames for slot in frame.next_tokens.slots]
    assert sorted(told) == [job.slot for job in jobs]
    assert all(bool(frame.updates) is not columns for frame in frames)
    assert len(frames) <= 6


def test_everything_at_once_is_told_once_in_frames_of_bounded_size() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    ending, described, leaving = jobs_of(600)[:200], jobs_of(600)[200:220], jobs_of(600)[220:]
    for job in ending:
        job.append(job.made, LARGE)
        job.end = worst_end()
    for job in described:
        for _ in range(200):
            job.append(job.made, LARGE)
            job.describe(TokenLogprobs(-1.5, (LARGE,) * 20, (-2.5,) * 20))
    for job in (*ending, *described):
        outgoing.line[job.handle] = job
    for job in leaving:
        outgoing.returned(job, pb.RETURN_REASON_UNSUPPORTED, "\U0001f300" * 1000, retry_ms=LARGE)
    tags = [number.to_bytes(16, "big") for number in range(2000)]
    report = engine.report(kv=kv(1, count=5000), served=dict.fromkeys(tags, Served(2**62, 2**62)))
    outgoing.report(report, 0.0)
    outgoing.draining(LARGE)
    frames = frames_of(outgoing)
    assert sorted(update.slot for frame in frames for update in frame.updates if update.HasField("end")) == [
        job.slot for job in ending
    ]
    assert sum(len(update.logprobs) for frame in frames for update in frame.updates) == 20 * 200
    assert [each.slot for frame in frames for each in frame.returned] == [job.slot for job in leaving]
    assert [each.tenant_tag for frame in frames for each in frame.tenant_service] == tags
    assert sum(len(frame.kv_events.events) for frame in frames) == 5000


def test_the_largest_state_leaves_the_room_that_is_kept_for_it() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    report = engine.report()
    large = 2**63
    object.__setattr__(report, "load", Load(*[LARGE, LARGE, large, LARGE, LARGE, LARGE, LARGE, LARGE, large]))
    object.__setattr__(report, "step_model", StepModelState((1e300,) * 5, 1e300, 1e300, LARGE))
    outgoing.report(report, 0.0)
    outgoing.draining(LARGE)
    (frame,) = frames_of(outgoing)
    assert frame.ByteSize() <= 512


def test_what_waits_for_a_router_that_reads_nothing_grows_with_tokens_alone() -> None:
    outgoing, engine, jobs = Outgoing(), RecordingEngine(), jobs_of(8)
    for _ in range(5000):
        outgoing.report(engine.report(served={b"t" * 16: Served(1, 8)}), 0.0)
    for job in jobs:
        for token in range(3000):
            job.append(job.made, token)
            outgoing.line[job.handle] = job
    frames = frames_of(outgoing)
    assert sum(len(update.token_ids) for frame in frames for update in frame.updates) == 8 * 3000
    assert sum(frame.ByteSize() for frame in frames) < 8 * 3000 * 3
    assert [each.output_tokens for frame in frames for each in frame.tenant_service] == [8 * 5000]
