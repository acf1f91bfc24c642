"""One session without a network: commands in, frames out, an engine that says what the test says."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from headrace.v1 import session_pb2 as pb
from headrace.v1 import types_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.common.conduct import BURST
from services.worker.engine.report import TokenReport
from services.worker.metrics import WorkerMetrics
from services.worker.scheduler.events import Rejected, RejectReason, Returned, Room
from services.worker.scheduler.request import FinishReason, LatencyClass
from services.worker.session.commands import MOST_RETURNS
from services.worker.session.credits import Demand
from services.worker.session.desk import Desk
from services.worker.session.faults import Misbehaved
from services.worker.session.prompts import NEXT_PIECE_S
from services.worker.session.session import Session
from tests.support.session_engine import Credits, RecordingEngine, finish, kv

WELCOME = pb.Welcome(router_id="r", session_id="s")


class Bench:
    """A desk with one session, and the router's side of its numbers."""

    def __init__(self, engine: RecordingEngine | None = None) -> None:
        self.engine = engine or RecordingEngine()
        self.left: list[float | None] = []
        self.desk = Desk(self.engine, WorkerMetrics(CollectorRegistry()), self.left.append)
        self.desk.report(self.engine.report(), time.monotonic())
        self.session = self.open()
        self.frames: list[pb.WorkerFrame] = []
        self.drain()

    def open(self, welcome: pb.Welcome = WELCOME, held: Any = None) -> Session:
        self.number = 2
        session = Session(self.desk, welcome, 0.0)
        session.begin(welcome, held if held is not None else {}, 0.0)
        return session

    def send(self, acknowledged: int = 2, **fields: Any) -> None:
        self.number += 1
        frame = pb.RouterFrame(number=self.number, acknowledged_frame=acknowledged, **fields)
        self.session.handle(frame, now=100.0)

    def report(self, *arguments: Any, **fields: Any) -> None:
        self.desk.report(self.engine.report(*arguments, **fields), time.monotonic())

    def drain(self) -> list[pb.WorkerFrame]:
        frames = []
        while (frame := self.session.take()) is not None:
            frames.append(frame)
        self.frames += frames
        return frames

    def updates(self) -> list[pb.SequenceUpdate]:
        return [update for frame in self.drain() for update in frame.updates]

    def returned(self) -> list[pb.Returned]:
        return [each for frame in self.drain() for each in frame.returned]


def submit(slot: int = 1, **changes: Any) -> pb.Submit:
    made = {
        "slot": slot,
        "request_id": f"r{slot}",
        "attempt": 1,
        "prompt_tokens": 3,
        "prompt_ids": [1, 2, 3],
        "max_tokens": 8,
        "kv_key": b"k" * 32,
        "tenant_tag": b"t" * 16,
    }
    return pb.Submit(**{**made, **changes})


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_frame_tells_load_credit_and_step_model(bench: Bench) -> None:
    (frame,) = bench.frames
    assert frame.number == 3
    assert frame.credit.sequences == 1000
    assert frame.HasField("load")
    assert frame.HasField("progress")
    assert frame.step_model.b > 0


def test_a_submit_reaches_the_engine_with_its_times_turned_into_the_machines_clock(bench: Bench) -> None:
    sampling = types_pb2.SamplingParams(temperature=0.5, seed=2**64 - 1, logprobs=2, stop_token_ids=[5, 6])
    bench.send(
        submits=[
            submit(
                latency_class=types_pb2.LATENCY_CLASS_INTERACTIVE,
                remaining_ms=2500,
                waited_ms=1500,
                ttft_target_ms=500,
                expected_output_tokens=7,
                delivered_ids=[9, 9],
                next_index=2,
                sampling=sampling,
            )
        ]
    )
    (request,) = bench.engine.requests.values()
    assert request.prompt.tolist() == [1, 2, 3]
    assert request.delivered.tolist() == [9, 9]
    assert (request.deadline_s, request.arrival_s, request.ttft_target_s) == (102.5, 98.5, 0.5)
    assert request.tpot_target_s is None
    assert request.expected_output_tokens == 7
    assert request.latency_class is LatencyClass.INTERACTIVE
    assert (request.kv_key, request.tenant, request.session) == (b"k" * 32, b"t" * 16, bench.session.number)
    assert (request.sampling.temperature, request.sampling.seed) == (0.5, 2**64 - 1)
    assert (request.sampling.logprobs, request.sampling.stop_token_ids) == (2, (5, 6))
    assert (request.sampling.top_p, request.sampling.repetition_penalty) == (1.0, 1.0)


def test_the_wait_that_is_told_is_this_workers_own(bench: Bench) -> None:
    """Its router adds what passed before."""
    bench.send(submits=[submit(waited_ms=1500)])
    handle = bench.engine.handle()
    bench.report({handle: [10]}, finished=[finish(handle, queue_s=1.75)])
    (update,) = bench.updates()
    assert update.end.queue_us == 250_000


def test_an_unknown_class_is_standard_and_no_deadline_is_none(bench: Bench) -> None:
    bench.send(submits=[submit(latency_class=77)])
    (request,) = bench.engine.requests.values()
    assert request.latency_class is LatencyClass.STANDARD
    assert request.deadline_s is None


def test_output_goes_to_the_slot_with_attempt_and_index(bench: Bench) -> None:
    bench.send(submits=[submit(7, attempt=3, next_index=2, delivered_ids=[4, 5])])
    handle = bench.engine.handle()
    bench.report({handle: [10, 11]})
    bench.report({handle: [12]}, finished=[finish(handle, FinishReason.EOS, stop_token_id=12)])
    (update,) = bench.updates()
    assert (update.slot, update.attempt, update.first_index) == (7, 3, 2)
    assert list(update.token_ids) == [10, 11, 12]
    assert (update.end.reason, update.end.stop_token_id) == (pb.END_REASON_EOS, 12)
    assert (update.end.queue_us, update.end.prefill_us, update.end.decode_us) == (1000, 2000, 3000)


@pytest.mark.parametrize("asked", [False, True])
def test_single_ids_come_as_columns_where_the_router_reads_them(bench: Bench, asked: bool) -> None:
    bench.session.end()
    bench.session = bench.open(pb.Welcome(router_id="r", next_tokens=asked))
    bench.report()
    bench.drain()
    bench.send(submits=[submit(7)])
    bench.report({bench.engine.handle(): [10]})
    (frame,) = bench.drain()
    assert frame.HasField("next_tokens") is asked
    assert len(frame.updates) == (not asked)


def test_a_step_that_brought_only_tokens_is_told_without_state(bench: Bench) -> None:
    bench.send(submits=[submit(7)])
    bench.report({bench.engine.handle(): [10]})
    bench.drain()
    whole = bench.engine.report({bench.engine.handle(): [11]})
    bench.desk.report(TokenReport(whole.outputs, whole.progress), time.monotonic())
    (frame,) = bench.drain()
    assert [(each.first_index, list(each.token_ids)) for each in frame.updates] == [(1, [11])]
    assert not any(map(frame.HasField, ("load", "progress", "credit")))
    bench.desk.report(TokenReport(bench.engine.report().outputs, whole.progress), time.monotonic())
    assert not bench.drain()


def test_credit_is_told_again_for_frames_that_took_some_and_for_no_other(bench: Bench) -> None:
    bench.send(submits=[submit(1)])
    bench.report()
    assert bench.drain()[-1].HasField("credit")
    for _ in range(3):
        bench.send()
        bench.report()
        (frame,) = bench.drain()
        assert frame.acknowledged_command == bench.number
        assert not frame.HasField("credit")
    bench.send(
        submits=[submit(1)]
    )  # of a slot that is taken: it costs nothing here, but its router counts it
    bench.report()
    assert bench.drain()[-1].HasField("credit")


def test_a_command_is_acknowledged_by_the_report_that_contains_it(bench: Bench) -> None:
    bench.send(submits=[submit(1)])
    bench.report(last_command=0)
    assert bench.drain()[-1].acknowledged_command == 2
    bench.send(demand=pb.Demand(prefill_tokens=1, requests=1))
    bench.report(last_command=1)
    assert bench.drain()[-1].acknowledged_command == 4


def test_a_prompt_in_pieces_begins_when_it_is_whole_and_waits_from_its_first_piece(bench: Bench) -> None:
    bench.send(submits=[submit(prompt_tokens=6, remaining_ms=1000)])
    bench.send(prompt_pieces=[pb.PromptPiece(slot=1, attempt=1, offset=3, ids=[4, 5])])
    assert not bench.engine.requests
    bench.send(prompt_pieces=[pb.PromptPiece(slot=1, attempt=1, offset=5, ids=[6])])
    (request,) = bench.engine.requests.values()
    assert request.prompt.tolist() == [1, 2, 3, 4, 5, 6]
    assert request.deadline_s == 101.0


def test_a_prompt_whose_rest_never_comes_gives_its_credit_back(bench: Bench) -> None:
    before = bench.desk.books.grant(bench.session.number, 0).all
    bench.send(submits=[submit(prompt_tokens=6)])
    bench.send(prompt_pieces=[pb.PromptPiece(slot=1, attempt=1, offset=3, ids=[4, 5])])
    bench.desk.report(bench.engine.report(), 100.0 + NEXT_PIECE_S)
    assert not bench.returned()
    bench.desk.report(bench.engine.report(), 100.1 + NEXT_PIECE_S)
    (returned,) = bench.returned()
    assert (returned.slot, returned.reason) == (1, pb.RETURN_REASON_INCOMPLETE)
    assert bench.desk.metrics.bad_frames.labels("incomplete_prompt")._value.get() == 1
    assert bench.desk.books.grant(bench.session.number, 1).all == before
    assert not bench.engine.requests


def test_a_router_that_goes_on_with_half_prompts_is_left(bench: Bench) -> None:
    for slot in range(1, BURST + 2):
        bench.send(submits=[submit(slot, prompt_tokens=6)])
    bench.desk.report(bench.engine.report(), 100.1 + NEXT_PIECE_S)
    with pytest.raises(Misbehaved):
        bench.drain()


def test_delivered_ids_follow_in_pieces_after_the_prompt(bench: Bench) -> None:
    bench.send(submits=[submit(prompt_tokens=5, next_index=4)])
    for offset, ids in ((3, [4, 5]), (5, [6, 7, 8])):
        bench.send(prompt_pieces=[pb.PromptPiece(slot=1, attempt=1, offset=offset, ids=ids)])
    assert not bench.engine.requests
    bench.send(prompt_pieces=[pb.PromptPiece(slot=1, attempt=1, offset=8, ids=[9])])
    (request,) = bench.engine.requests.values()
    assert request.prompt.tolist() == [1, 2, 3, 4, 5]
    assert request.delivered.tolist() == [6, 7, 8, 9]
    bench.report({bench.engine.handle(): [10]})
    assert bench.updates()[0].first_index == 4


def test_a_piece_has_no_ids_of_prompt_and_output_both(bench: Bench) -> None:
    bench.send(submits=[submit(prompt_tokens=5, next_index=4)])
    bench.send(prompt_pieces=[pb.PromptPiece(slot=1, attempt=1, offset=3, ids=[4, 5, 6])])
    (update,) = bench.updates()
    assert update.end.reason == pb.END_REASON_ERROR


@pytest.mark.parametrize(
    "piece",
    [
        {"offset": 4, "ids": [5]},
        {"offset": 2, "ids": [5]},
        {"offset": 3, "ids": []},
        {"offset": 3, "ids": [1] * 1000},
    ],
)
def test_pieces_that_do_not_fit_end_the_request(bench: Bench, piece: dict[str, Any]) -> None:
    bench.send(submits=[submit(prompt_tokens=6)])
    bench.send(prompt_pieces=[pb.PromptPiece(slot=1, attempt=1, **piece)])
    (update,) = bench.updates()
    assert update.end.reason == pb.END_REASON_ERROR
    assert not bench.engine.requests
    bench.send(submits=[submit(2)])
    assert len(bench.engine.requests) == 1


def test_a_prompt_that_is_cancelled_before_it_is_whole_ends_without_the_engine(bench: Bench) -> None:
    bench.send(submits=[submit(prompt_tokens=6)])
    bench.send(cancels=[pb.Cancel(slot=1, attempt=1)])
    (update,) = bench.updates()
    assert update.end.reason == pb.END_REASON_CANCELLED
    assert not bench.engine.aborted


def test_a_cancel_is_answered_by_the_engines_own_end(bench: Bench) -> None:
    bench.send(submits=[submit()])
    bench.send(cancels=[pb.Cancel(slot=1, attempt=1)])
    handle = bench.engine.handle()
    assert bench.engine.aborted == [handle]
    bench.drain()
    bench.report(finished=[finish(handle, FinishReason.CANCELLED)])
    (update,) = bench.updates()
    assert update.end.reason == pb.END_REASON_CANCELLED
    bench.send(cancels=[pb.Cancel(slot=1, attempt=1)])
    assert not bench.updates()


@pytest.mark.parametrize("how", ["ended", "given back", "refused"])
def test_a_cancel_that_crosses_the_end_is_expected_once(bench: Bench, how: str) -> None:
    if how == "refused":
        bench.desk.drain(1000)
    bench.send(submits=[submit()])
    if how == "ended":
        handle = bench.engine.handle()
        bench.report({handle: [10]}, finished=[finish(handle)])
    elif how == "given back":
        bench.report(returned=[Returned(bench.engine.handle(), 0)])
    bench.drain()
    bad = bench.desk.metrics.bad_frames.labels("unknown_slot")._value
    bench.send(cancels=[pb.Cancel(slot=1, attempt=1)])
    assert bad.get() == 0
    bench.send(cancels=[pb.Cancel(slot=1, attempt=1)])
    assert bad.get() == 1


def test_a_slot_that_is_taken_again_can_be_cancelled(bench: Bench) -> None:
    bench.send(submits=[submit()])
    first = bench.engine.handle()
    bench.report({first: [10]}, finished=[finish(first)])
    bench.drain()
    bench.send(submits=[submit()])
    bench.send(cancels=[pb.Cancel(slot=1, attempt=1)])
    assert bench.engine.aborted == [bench.engine.handle()]


def test_a_cancel_of_another_attempt_touches_nothing(bench: Bench) -> None:
    bench.send(submits=[submit(attempt=2)], cancels=[pb.Cancel(slot=1, attempt=1)])
    assert not bench.engine.aborted


def test_without_credit_a_submit_comes_back_at_once() -> None:
    bench = Bench()
    bench.report(credits=Credits(100, 1, 10, {}, Room(100, 1, 10)))
    bench.drain()
    bench.send(acknowledged=4)
    bench.send(acknowledged=4, submits=[submit(1), submit(2, next_index=1, delivered_ids=[9])])
    assert len(bench.engine.requests) == 1
    (returned,) = bench.returned()
    assert (returned.slot, returned.reason) == (2, pb.RETURN_REASON_NO_CREDIT)
    assert (returned.next_index, returned.retry_ms) == (1, 50)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": 5000},
        {"grammar": pb.Submit().grammar.__class__(regex="a+")},
        {"sampling": types_pb2.SamplingParams(logprobs=21)},
    ],
)
def test_what_cannot_run_here_comes_back_for_another_worker(bench: Bench, changes: dict[str, Any]) -> None:
    bench.send(submits=[submit(**changes)])
    (returned,) = bench.returned()
    assert returned.reason == pb.RETURN_REASON_UNSUPPORTED
    assert returned.message
    assert not bench.engine.requests


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": ""},
        {"prompt_tokens": 2},
        {"prompt_tokens": 0, "prompt_ids": []},
        {"next_index": 1, "delivered_ids": [1, 2]},
        {"max_tokens": 0},
        {"kv_key": b"short"},
        {"tenant_tag": b"x"},
    ],
)
def test_a_submit_that_makes_no_sense_ends_in_an_error(bench: Bench, changes: dict[str, Any]) -> None:
    bench.send(submits=[submit(**changes)])
    (update,) = bench.updates()
    assert update.end.reason == pb.END_REASON_ERROR
    assert not bench.engine.requests


def test_refusals_of_the_engine_are_told_by_their_kind(bench: Bench) -> None:
    bench.send(submits=[submit(each) for each in (1, 2, 3)])
    reasons = (RejectReason.TOO_LONG, RejectReason.INVALID, RejectReason.DRAINING)
    handles = list(bench.engine.requests)
    bench.report(rejected=[Rejected(*pair, "why") for pair in zip(handles, reasons, strict=True)])
    (frame,) = bench.drain()
    assert {each.slot: each.reason for each in frame.returned} == {
        1: pb.RETURN_REASON_UNSUPPORTED,
        3: pb.RETURN_REASON_DRAINING,
    }
    assert [(each.slot, each.end.reason, each.end.message) for each in frame.updates] == [
        (2, pb.END_REASON_ERROR, "why")
    ]


def test_what_the_engine_gives_back_names_the_index_after_all_that_was_sent(bench: Bench) -> None:
    bench.send(submits=[submit()])
    handle = bench.engine.handle()
    bench.report({handle: [1, 2, 3]}, returned=[Returned(handle, 3)])
    (frame,) = bench.drain()
    assert list(frame.updates[0].token_ids) == [1, 2, 3]
    assert (frame.returned[0].reason, frame.returned[0].next_index) == (pb.RETURN_REASON_DRAINING, 3)


def test_a_draining_worker_says_so_and_takes_nothing_new(bench: Bench) -> None:
    bench.send(submits=[submit(1, prompt_tokens=6), submit(2)])
    bench.desk.drain(4000)
    bench.send(submits=[submit(3)])
    frames = bench.drain()
    assert frames[0].draining.remaining_ms == 4000
    given_back = [each for frame in frames for each in frame.returned]
    assert {each.slot for each in given_back} == {1, 3}
    assert {each.reason for each in given_back} == {pb.RETURN_REASON_DRAINING}
    assert len(bench.engine.requests) == 1


def test_a_router_can_ask_the_worker_to_leave(bench: Bench) -> None:
    bench.send(drain=pb.DrainRequest(grace_ms=1500))
    bench.send(drain=pb.DrainRequest())
    assert bench.left == [1.5, None]


def test_demand_moves_the_credit(bench: Bench) -> None:
    bench.send(demand=pb.Demand(prefill_tokens=2**64 - 1, requests=2**32 - 1))
    assert bench.desk.books._all._accounts[bench.session.number].demand == Demand(10**9, 10**9)


def test_foreground_work_may_have_what_batch_work_holds() -> None:
    bench = Bench()
    bench.report(credits=Credits(0, 0, 0, {}, Room(500, 2, 20)))
    (frame,) = bench.drain()[-1:]
    assert (frame.credit.sequences, frame.foreground_credit.sequences) == (0, 2)
    bench.send(acknowledged=frame.number)
    batch, chat = types_pb2.LATENCY_CLASS_BATCH, types_pb2.LATENCY_CLASS_INTERACTIVE
    submits = [submit(1, latency_class=batch), submit(2, latency_class=chat), submit(3, latency_class=chat)]
    bench.send(acknowledged=frame.number, submits=[*submits, submit(4, latency_class=chat)])
    assert [request.latency_class.name for request in bench.engine.requests.values()] == ["INTERACTIVE"] * 2
    assert [each.slot for each in bench.returned()] == [1, 4]


def test_a_snapshot_tells_all_blocks_that_events_told(bench: Bench) -> None:
    bench.report(kv=kv(1, count=4000))
    bench.report(kv=kv(4001, count=10))
    bench.drain()
    bench.send(kv_snapshot_wanted=True)
    pieces = [frame.kv_snapshot for frame in bench.drain() if frame.HasField("kv_snapshot")]
    digests = b"".join(piece.digests for piece in pieces)
    assert len(digests) == 16 * 4010
    assert [piece.last for piece in pieces] == [False, True]
    assert {piece.next_event_number for piece in pieces} == {4011}


class TestResuming:
    """A session breaks; the next one goes on from the index that the router lacks."""

    @pytest.fixture
    def broken(self, bench: Bench) -> Bench:
        bench.send(submits=[submit()])
        handle = bench.engine.handle()
        bench.report({handle: [10, 11, 12]})
        bench.drain()
        bench.send(acknowledged=4)
        bench.report({handle: [13, 14]})
        bench.drain()
        return bench

    def resume(self, bench: Bench, next_index: int, slot: int = 50, attempt: int = 1) -> None:
        held = bench.session.end()
        request = pb.ResumeRequest(
            request_id="r1", slot=slot, attempt=attempt, next_index=next_index, handle=max(held, default=0)
        )
        welcome = pb.Welcome(router_id="r", resume=[request])
        bench.session = bench.open(welcome, held)

    @pytest.mark.parametrize("next_index", [0, 3, 4, 5])
    def test_lost_tokens_are_told_again_and_new_ones_follow(self, broken: Bench, next_index: int) -> None:
        held_before = broken.session._seats.jobs.copy()
        self.resume(broken, next_index)
        handle = broken.engine.handle()
        broken.report({handle: [15]}, finished=[finish(handle)])
        (update,) = broken.updates()
        assert (update.slot, update.first_index) == (50, next_index)
        assert list(update.token_ids) == list(range(10 + next_index, 16))
        assert update.end.reason == pb.END_REASON_LENGTH
        assert len(held_before) == 1

    def test_a_request_that_ended_while_nobody_listened_ends_now(self, broken: Bench) -> None:
        held = broken.session.end()
        handle = broken.engine.handle()
        broken.report({handle: [15]}, finished=[finish(handle)])
        request = pb.ResumeRequest(request_id="r1", slot=9, attempt=1, next_index=5, handle=handle)
        broken.session = broken.open(pb.Welcome(resume=[request]), held)
        (update,) = broken.updates()
        assert list(update.token_ids) == [15]
        assert update.HasField("end")

    def test_an_end_that_was_not_acknowledged_is_told_again(self, broken: Bench) -> None:
        handle = broken.engine.handle()
        broken.report(finished=[finish(handle)])
        assert broken.updates()[-1].HasField("end")
        self.resume(broken, 5)
        (update,) = broken.updates()
        assert update.HasField("end")
        assert update.first_index == 5

    def test_an_end_that_was_acknowledged_is_not_held(self, broken: Bench) -> None:
        broken.report(finished=[finish(broken.engine.handle())])
        last = broken.drain()[-1].number
        broken.send(acknowledged=last)
        assert broken.session.end() == {}

    def test_what_the_router_does_not_resume_is_aborted(self, broken: Bench) -> None:
        held = broken.session.end()
        broken.session = broken.open(WELCOME, held)
        assert broken.engine.aborted == [broken.engine.handle()]

    @pytest.mark.parametrize(("next_index", "attempt"), [(99, 1), (5, 2)])
    def test_what_cannot_be_resumed_is_ended_here(self, broken: Bench, next_index: int, attempt: int) -> None:
        """Beyond what was made, another attempt."""
        self.resume(broken, next_index, attempt=attempt)
        assert broken.engine.aborted == [broken.engine.handle()]
        (returned,) = broken.returned()
        assert (returned.slot, returned.attempt) == (50, attempt)

    def test_two_requests_of_one_name_are_told_apart(self, bench: Bench) -> None:
        """Two tenants may have chosen the same one."""
        bench.send(submits=[submit(1), submit(2, request_id="r1")])
        first, second = bench.engine.requests
        bench.report({first: [10, 11], second: [20, 21]})
        bench.drain()
        held = bench.session.end()
        assert set(held) == {first, second}
        request = pb.ResumeRequest(request_id="r1", slot=9, attempt=1, next_index=1, handle=second)
        bench.session = bench.open(pb.Welcome(resume=[request]), held)
        (update,) = bench.updates()
        assert (update.slot, list(update.token_ids)) == (9, [21])
        assert bench.engine.aborted == [first]

    def test_output_of_any_number_of_unacknowledged_frames_can_be_had_again(self, bench: Bench) -> None:
        count = 5000
        bench.send(submits=[submit(max_tokens=count)])
        for token in range(count):
            bench.report({bench.engine.handle(): [token]})
            bench.drain()
        self.resume(bench, next_index=1)
        told = [token for update in bench.updates() for token in update.token_ids]
        assert told == list(range(1, count))

    def test_an_unknown_request_comes_back(self, bench: Bench) -> None:
        self.resume(bench, 7)
        (returned,) = bench.returned()
        assert (returned.slot, returned.next_index) == (50, 7)

    def test_what_the_engine_gave_back_while_nobody_listened_comes_back(self, broken: Bench) -> None:
        held = broken.session.end()
        handle = broken.engine.handle()
        request = pb.ResumeRequest(request_id="r1", slot=9, attempt=1, next_index=5, handle=handle)
        broken.report(returned=[Returned(handle, 2)])
        assert held == {}
        broken.session = broken.open(pb.Welcome(resume=[request]), held)
        (returned,) = broken.returned()
        assert (returned.slot, returned.attempt, returned.next_index) == (9, 1, 5)

    def test_half_a_prompt_is_not_held(self, bench: Bench) -> None:
        bench.send(submits=[submit(prompt_tokens=6)])
        assert bench.session.end() == {}


def test_a_slot_in_use_cannot_be_taken(bench: Bench) -> None:
    bench.send(submits=[submit(1), submit(1, request_id="other")])
    assert len(bench.engine.requests) == 1
    assert bench.desk.metrics.bad_frames.labels("duplicate_slot")._value.get() == 1


def test_a_slot_is_free_again_after_its_end(bench: Bench) -> None:
    bench.send(submits=[submit(1)])
    bench.report(finished=[finish(bench.engine.handle())])
    bench.drain()
    bench.send(submits=[submit(1, request_id="next")])
    assert len(bench.engine.requests) == 2


def test_nonsense_that_goes_on_ends_the_session_not_the_engine(bench: Bench) -> None:
    for slot in range(BURST):
        bench.send(cancels=[pb.Cancel(slot=slot + 1000, attempt=1)])
    with pytest.raises(Misbehaved):
        bench.send(cancels=[pb.Cancel(slot=1000, attempt=1)])
    bench.send(submits=[submit()])
    assert len(bench.engine.requests) == 1


def test_a_little_nonsense_now_and_then_is_forgiven(bench: Bench) -> None:
    for turn in range(5 * BURST):
        bench.number += 1
        frame = pb.RouterFrame(number=bench.number, cancels=[pb.Cancel(slot=1000, attempt=1)])
        bench.session.handle(frame, now=100.0 + turn)


def test_a_frame_that_comes_twice_is_not_obeyed_and_ends_the_session(bench: Bench) -> None:
    frame = pb.RouterFrame(number=3, submits=[submit()])
    bench.session.handle(frame, 100.0)
    with pytest.raises(Misbehaved):
        bench.session.handle(frame, 100.0)
    assert len(bench.engine.requests) == 1


def test_a_router_that_reads_nothing_cannot_have_ever_more_given_back(bench: Bench) -> None:
    bench.desk.drain(1000)
    submits = [submit(slot) for slot in range(MOST_RETURNS + 1)]
    with pytest.raises(Misbehaved):
        bench.send(submits=submits)
    assert bench.session._outgoing.returns == MOST_RETURNS


def test_a_welcome_of_nonsense_leaves_no_held_request_running(bench: Bench) -> None:
    bench.send(submits=[submit(slot) for slot in range(BURST + 2)])
    held = bench.session.end()
    assert len(held) == BURST + 2
    wrong = [pb.ResumeRequest(handle=handle, slot=1, attempt=9) for handle in held]
    session = Session(bench.desk, WELCOME, 0.0)
    with pytest.raises(Misbehaved):
        session.begin(pb.Welcome(resume=wrong), held, 0.0)
    assert set(bench.engine.aborted) == set(bench.engine.requests)


def test_commands_that_are_missing_end_the_session_and_nothing_that_runs(bench: Bench) -> None:
    bench.send(submits=[submit(1)])
    bench.number += 1
    with pytest.raises(Misbehaved):
        bench.send(submits=[submit(2)])
    assert len(bench.engine.requests) == 1
    assert not bench.engine.aborted
    assert len(bench.session.end()) == 1


small = st.integers(0, 4)
wild = st.one_of(small, st.integers(0, 2**32 - 1))
ids = st.lists(st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)), max_size=6)
keys = st.sampled_from([b"", b"k" * 32, b"x"])
submits = st.builds(
    pb.Submit,
    slot=small,
    request_id=st.sampled_from(["", "a", "b", "c" * 300]),
    attempt=small,
    next_index=wild,
    prompt_tokens=wild,
    prompt_ids=ids,
    delivered_ids=ids,
    max_tokens=wild,
    latency_class=st.integers(-5, 200),
    remaining_ms=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    waited_ms=st.integers(0, 2**64 - 1),
    ttft_target_ms=st.one_of(st.none(), wild),
    expected_output_tokens=wild,
    kv_key=keys,
    public_kv_key=keys,
    public_prefix_tokens=wild,
    tenant_tag=st.sampled_from([b"", b"t" * 16, b"y"]),
    sampling=st.builds(
        types_pb2.SamplingParams,
        temperature=st.floats(width=32),
        seed=st.integers(0, 2**64 - 1),
        logprobs=st.one_of(st.none(), wild),
        stop_token_ids=ids,
    ),
)
good_submits = st.builds(
    lambda slot, attempt: submit(slot, attempt=attempt, request_id=f"g{slot}"), small, small
)
frames = st.builds(
    pb.RouterFrame,
    submits=st.lists(st.one_of(submits, good_submits), max_size=3),
    prompt_pieces=st.lists(
        st.builds(pb.PromptPiece, slot=small, attempt=small, offset=wild, ids=ids), max_size=3
    ),
    cancels=st.lists(st.builds(pb.Cancel, slot=small, attempt=small), max_size=3),
    demand=st.one_of(
        st.none(), st.builds(pb.Demand, prefill_tokens=st.integers(0, 2**64 - 1), requests=wild)
    ),
    kv_snapshot_wanted=st.booleans(),
    acknowledged_frame=st.one_of(small, st.integers(0, 2**64 - 1)),
    welcome=st.one_of(st.none(), st.just(WELCOME)),
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(frames, st.integers(0, 3), st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1])), max_size=25))
def test_whatever_a_router_sends_each_request_ends_once_and_the_engine_lives(
    steps: list[tuple[pb.RouterFrame, int, int]],
) -> None:
    bench = Bench()
    ended: list[int] = []
    owed: Counter[tuple[int, int]] = Counter()
    try:
        for frame, outcome, skip_number in steps:
            bench.number += 1 + skip_number
            frame.number = bench.number
            owed.update((each.slot, each.attempt) for each in frame.submits)
            bench.session.handle(frame, now=100.0)
            _turn(bench, outcome, ended)
            _check_frames(bench, owed)
    except Misbehaved:
        pass
    for job in bench.session.end().values():
        bench.desk.abandon(job)
    alive = [handle for handle in bench.engine.requests if handle not in ended]
    bench.report(finished=[finish(handle, FinishReason.CANCELLED) for handle in alive])
    assert bench.desk.idle.is_set()
    assert not bench.desk._jobs
    assert not bench.desk.books._all._charges
    assert not bench.desk.books._foreground._charges


def _turn(bench: Bench, outcome: int, ended: list[int]) -> None:
    """The engine makes a token for all that runs, and ends some."""
    alive = [handle for handle in bench.engine.requests if handle not in ended]
    over = [handle for handle in alive if handle % 4 == outcome or handle in bench.engine.aborted]
    ended += over
    bench.report({handle: [7] for handle in alive}, finished=[finish(handle) for handle in over])


def _check_frames(bench: Bench, owed: Counter[tuple[int, int]]) -> None:
    """Frames are well-formed, and no submission is answered twice."""
    for frame in bench.drain():
        assert frame.ByteSize() <= 64 << 10
        pb.WorkerFrame.FromString(frame.SerializeToString())
        for each in (*(update for update in frame.updates if update.HasField("end")), *frame.returned):
            owed[each.slot, each.attempt] -= 1
            assert owed[each.slot, each.attempt] >= 0


def test_ids_beyond_the_signed_range_reach_the_engine_as_ids_that_it_refuses(bench: Bench) -> None:
    bench.send(submits=[submit(prompt_ids=[1, 2**32 - 1, 3])])
    (request,) = bench.engine.requests.values()
    assert request.prompt.dtype == np.int32
    assert request.prompt.min() < 0
