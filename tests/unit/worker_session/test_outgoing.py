"""What waits for a writer merges, stays bounded, and leaves once and in order, in frames up to 64 KiB."""

from __future__ import annotations

from headrace.v1 import session_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.scheduler.events import Served, TokenLogprobs
from services.worker.session.job import Job
from services.worker.session.kv_news import MOST_EVENTS
from services.worker.session.outgoing import Outgoing
from tests.support.session_engine import RecordingEngine, kv

LIMIT = 64 << 10
LARGE_ID = 2**31 - 1


def job_of(handle: int, next_index: int = 0) -> Job:
    submit = pb.Submit(slot=handle + 100, request_id=f"r{handle}", attempt=1, next_index=next_index)
    return Job(handle, submit)


def make(job: Job, ids: list[int], candidates: int | None = None) -> None:
    """The engine made these ids."""
    for token in ids:
        job.append(job.made, token)
        if candidates is not None:
            job.describe(TokenLogprobs(-1.5, (LARGE_ID,) * candidates, (-2.5,) * candidates))


def drain(outgoing: Outgoing) -> list[pb.WorkerFrame]:
    frames = []
    while not outgoing.empty:
        frame = pb.WorkerFrame(number=2**63, acknowledged_command=2**63)
        outgoing.fill(frame)
        frame.credit.CopyFrom(pb.Credit(prefill_tokens=2**63, sequences=2**31, kv_blocks=2**31))
        assert frame.ByteSize() <= LIMIT
        frames.append(frame)
        assert len(frames) < 10_000
    return frames


def test_steps_merge_into_one_update_a_sequence() -> None:
    outgoing, jobs, engine = Outgoing(), [job_of(1), job_of(2)], RecordingEngine()
    for step in range(50):
        for job in jobs:
            make(job, [step])
            outgoing.line[job.handle] = job
        outgoing.report(engine.report(), now=0.0)
    (frame,) = drain(outgoing)
    assert [list(each.token_ids) for each in frame.updates] == [list(range(50))] * 2
    assert frame.progress.steps == 50


def test_one_new_id_is_told_in_columns_and_all_else_in_updates() -> None:
    outgoing, jobs = Outgoing(columns=True), [job_of(each, next_index=each) for each in range(1, 5)]
    for job, ids in zip(jobs, ([7], [8], [9], [10, 11]), strict=True):
        make(job, ids, candidates=1 if ids == [9] else None)
        outgoing.line[job.handle] = job
    jobs[1].end = pb.SequenceEnd(reason=pb.END_REASON_EOS)
    (frame,) = drain(outgoing)
    told = frame.next_tokens
    assert (told.slots, told.attempts, told.indices, told.token_ids) == ([101], [1], [1], [7])
    assert [list(each.token_ids) for each in frame.updates] == [[8], [9], [10, 11]]
    assert not any(job.has_news for job in jobs)


def test_the_end_travels_with_the_last_ids() -> None:
    outgoing, job = Outgoing(), job_of(1)
    make(job, [1, 2])
    job.end = pb.SequenceEnd(reason=pb.END_REASON_EOS)
    outgoing.line[job.handle] = job
    (frame,) = drain(outgoing)
    assert list(frame.updates[0].token_ids) == [1, 2]
    assert frame.updates[0].end.reason == pb.END_REASON_EOS
    assert not job.has_news


def test_what_is_given_back_comes_after_all_of_its_output() -> None:
    outgoing, job = Outgoing(), job_of(1)
    make(job, list(range(2000)), candidates=20)
    outgoing.line[job.handle] = job
    outgoing.returned(job, pb.RETURN_REASON_DRAINING)
    frames = drain(outgoing)
    assert [bool(frame.returned) for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert frames[-1].returned[0].next_index == 2000
    assert sum(len(update.token_ids) for frame in frames for update in frame.updates) == 2000


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),
            st.just(1) | st.integers(1, 300),
            st.sampled_from([None, None, None, 20]),
            st.booleans(),
        ),
        min_size=1,
        max_size=15,
    ),
    st.booleans(),
)
def test_every_token_leaves_once_and_in_order(
    steps: list[tuple[int, int, int | None, bool]], columns: bool
) -> None:
    outgoing = Outgoing(columns=columns)
    jobs: dict[tuple[int, int | None], Job] = {}
    wanted: dict[int, list[int]] = {}
    got: dict[int, list[int]] = {}
    frames: list[pb.WorkerFrame] = []
    for which, count, candidates, write in steps:
        handle = which * 100 + (-1 if candidates is None else candidates)
        job = jobs.setdefault((which, candidates), job_of(handle))
        ids = [LARGE_ID - offset for offset in range(count)]
        wanted.setdefault(job.slot, []).extend(ids)
        make(job, ids, candidates)
        outgoing.line[job.handle] = job
        outgoing.returned(job_of(10_000 + len(frames) * 50 + which), pb.RETURN_REASON_NO_CREDIT, "é" * 500)
        if write:
            frame = pb.WorkerFrame()
            outgoing.fill(frame)
            frames.append(frame)
    for frame in [*frames, *drain(outgoing)]:
        assert frame.ByteSize() <= LIMIT
        assert columns or not frame.HasField("next_tokens")
        told = frame.next_tokens
        for slot, index, token in zip(told.slots, told.indices, told.token_ids, strict=True):
            assert index == len(got.setdefault(slot, []))
            got[slot].append(token)
        for update in frame.updates:
            ids = got.setdefault(update.slot, [])
            assert update.first_index == len(ids)
            assert len(update.logprobs) in (0, len(update.token_ids))
            ids.extend(update.token_ids)
    assert got == wanted


def test_kv_events_keep_their_numbers_over_many_frames() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    outgoing.report(engine.report(kv=kv(5, count=1500)), 0.0)
    outgoing.report(engine.report(kv=kv(1505, stored=False, count=2000)), 0.0)
    number = 5
    for frame in drain(outgoing):
        if frame.kv_events.events:
            assert frame.kv_events.first_number == number
            number += len(frame.kv_events.events)
            assert all(len(each.stored or each.removed) == 16 for each in frame.kv_events.events)
    assert number == 3505


def test_events_that_nobody_reads_become_a_gap() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    outgoing.report(engine.report(kv=kv(1, count=MOST_EVENTS)), 0.0)
    outgoing.report(engine.report(kv=kv(MOST_EVENTS + 1, count=3)), 0.0)
    (frame,) = drain(outgoing)
    assert frame.kv_events.first_number == MOST_EVENTS + 1
    assert len(frame.kv_events.events) == 3


def test_events_wait_until_a_snapshot_is_whole() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    outgoing.report(engine.report(kv=kv(1, count=10)), 0.0)
    outgoing.snapshot(
        [
            pb.KvSnapshot(next_event_number=11, digests=bytes(48_000)),
            pb.KvSnapshot(next_event_number=11, last=True),
        ]
    )
    outgoing.report(engine.report(kv=kv(11)), 0.0)
    frames = [frame for frame in drain(outgoing) if frame.HasField("kv_snapshot") or frame.kv_events.events]
    assert [frame.HasField("kv_snapshot") for frame in frames] == [True, True, False]
    assert frames[-1].kv_events.first_number == 11


def test_tenants_are_told_totals_since_the_session_began() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    for _ in range(3):
        outgoing.report(engine.report(served={b"a" * 16: Served(10, 1)}), 0.0)
    (first,) = drain(outgoing)
    outgoing.report(engine.report(served={b"b" * 16: Served(0, 5), b"a" * 16: Served(0, 1)}), 0.01)
    (soon,) = drain(outgoing)
    assert not soon.tenant_service
    outgoing.report(engine.report(), 1.0)
    (second,) = drain(outgoing)
    told = [
        {each.tenant_tag[:1]: (each.prompt_tokens, each.output_tokens) for each in frame.tenant_service}
        for frame in (first, second)
    ]
    assert told == [{b"a": (30, 3)}, {b"b": (0, 5), b"a": (30, 4)}]


def test_a_step_model_is_told_when_it_changes_noticeably() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    report = engine.report()
    outgoing.report(report, 0.0)
    assert drain(outgoing)[0].HasField("step_model")
    outgoing.report(report, 0.0)
    assert not drain(outgoing)[0].HasField("step_model")


def test_only_the_newest_state_is_told() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    for running in (3, 7):
        outgoing.report(engine.report(running=running), 0.0)
    (frame,) = drain(outgoing)
    assert frame.load.running == 7


def test_a_state_that_says_nothing_new_goes_with_other_news_or_when_it_is_old() -> None:
    outgoing, engine = Outgoing(), RecordingEngine()
    outgoing.report(engine.report(running=1), 10.0, presses=False)
    assert not outgoing.empty, "the first"
    drain(outgoing)
    outgoing.report(engine.report(running=1), 10.05, presses=False)
    assert outgoing.empty
    outgoing.report(engine.report(running=2), 10.06, presses=False)
    assert not outgoing.empty, "one more runs"
    drain(outgoing)
    outgoing.report(engine.report(running=2), 10.07, presses=False)
    assert outgoing.empty
    job = job_of(1)
    make(job, [5])
    outgoing.line[job.handle] = job
    [frame] = drain(outgoing)
    assert frame.HasField("load"), "it goes along"
    outgoing.report(engine.report(running=2), 10.2, presses=False)
    assert not outgoing.empty, "it is old"
    drain(outgoing)
    outgoing.report(engine.report(running=2), 10.21, presses=True)
    assert not outgoing.empty, "the session has something to say with it"
