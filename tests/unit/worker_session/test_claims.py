"""Another router asks for what one has submitted: what it is told, and what taking over does to both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from headrace.v1 import session_pb2 as pb
from headrace.v1 import types_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.worker.metrics import WorkerMetrics
from services.worker.scheduler.events import TokenLogprobs
from services.worker.scheduler.request import FinishReason, Merge
from services.worker.session import answers as answers_module
from services.worker.session.answers import Answers, nothing_known
from services.worker.session.desk import Desk
from services.worker.session.ended import Ended
from services.worker.session.home import Home
from services.worker.session.job import Job
from services.worker.session.records import Record, Records, answer
from services.worker.session.session import Session
from tests.support.session_engine import RecordingEngine, finish

KEY = b"k" * 32
PROMPT = [1, 2, 3]


class Router:
    """One router's session, driven without a network."""

    def __init__(self, desk: Desk, name: str) -> None:
        welcome = pb.Welcome(router_id=name, orphan_hold_ms=5000)
        self.session = Session(desk, welcome, 0.0)
        self.session.begin(welcome, {}, 0.0)
        self._received = 2
        self.frames: list[pb.WorkerFrame] = []

    def send(self, **fields: Any) -> None:
        """A frame; acknowledges all that was read."""
        self.read()
        self._received += 1
        last = self.frames[-1].number if self.frames else 2
        frame = pb.RouterFrame(number=self._received, acknowledged_frame=last, **fields)
        self.session.handle(frame, now=100.0)

    def read(self) -> list[pb.WorkerFrame]:
        """What there is to read."""
        found = []
        while (frame := self.session.take()) is not None:
            found.append(frame)
        self.frames += found
        return found

    def updates(self) -> list[pb.SequenceUpdate]:
        """News of sequences."""
        return [each for frame in self.read() for each in frame.updates]

    def claim(self, next_index: int = 0, key: bytes = KEY) -> Claim:
        """Asks for a request, puts the answer together."""
        self.send(claims=[pb.Claim(claim_key=key, next_index=next_index)])
        frames = self.read()
        assert all(frame.ByteSize() <= 64 << 10 for frame in frames)
        return Claim([piece for frame in frames for piece in frame.claimed])

    def adopt(self, claim: Claim, slot: int = 9, **changes: Any) -> None:
        """Takes it over as the next attempt."""
        head = claim.head
        made = {
            "handle": head.handle,
            "slot": slot,
            "attempt": head.submit.attempt + 1,
            "next_index": head.output_tokens,
            "claim_key": KEY,
        }
        self.send(adoptions=[pb.Adopt(**{**made, **changes})])


class Claim:
    """The answer to a claim."""

    def __init__(self, pieces: Iterable[pb.Claimed]) -> None:
        self.pieces = list(pieces)
        assert self.pieces[-1].last
        assert not any(each.last for each in self.pieces[:-1])
        self.found = self.pieces[0].found

    @property
    def head(self) -> pb.Claimed:
        return self.pieces[0]

    @property
    def ids(self) -> list[int]:
        ids: list[int] = []
        for each in self.pieces:
            assert not each.ids or each.offset == len(ids)
            ids += each.ids
        return ids


class Bench:
    """A desk and its engine, with a router that has submitted one request."""

    def __init__(self, **changes: Any) -> None:
        self.engine = RecordingEngine()
        self.desk = Desk(self.engine, WorkerMetrics(CollectorRegistry()), lambda _: None)
        self.desk.report(self.engine.report(), 100.0)
        self.first, self.other = self.router("first"), self.router("other")
        self.first.send(submits=[submit(**changes)])

    def router(self, name: str) -> Router:
        router = Router(self.desk, name)
        router.read()
        return router

    def report(self, *arguments: Any, now: float = 100.0, **fields: Any) -> None:
        self.desk.report(self.engine.report(*arguments, **fields), now)

    def make(self, *ids: int) -> None:
        self.report({self.engine.handle(0): list(ids)})


def submit(slot: int = 1, **changes: Any) -> pb.Submit:
    made = {
        "slot": slot,
        "request_id": "r",
        "attempt": 1,
        "prompt_tokens": len(PROMPT),
        "prompt_ids": PROMPT,
        "max_tokens": 100,
        "claim_key": KEY,
        "router_state": b"sealed",
        "remaining_ms": 60_000,
        "waited_ms": 500,
    }
    return pb.Submit(**{**made, **changes})


def test_a_claim_tells_the_submission_and_all_output_also_what_was_acknowledged() -> None:
    bench = Bench(next_index=2, delivered_ids=[7, 8], attempt=4)
    bench.make(9, 10)
    bench.first.send()  # acknowledges them
    bench.make(11)
    claim = bench.other.claim()
    assert claim.ids == [*PROMPT, 7, 8, 9, 10, 11]
    told = claim.head.submit
    assert (told.request_id, told.attempt, told.router_state, told.claim_key) == ("r", 4, b"sealed", KEY)
    assert (told.slot, len(told.prompt_ids), len(told.delivered_ids)) == (0, 0, 0)
    assert claim.head.output_tokens == 5
    assert not claim.head.HasField("end")
    assert not claim.head.orphaned


def test_times_of_a_claimed_request_are_as_of_now() -> None:
    bench = Bench()
    record = bench.desk.records.find(KEY)
    assert record is not None
    [head, *_] = answer(record, pb.Claim(claim_key=KEY), record.at_s + 2, orphaned=True)
    assert (head.submit.waited_ms, head.submit.remaining_ms, head.orphaned) == (2500, 58_000, True)


def test_another_key_finds_nothing_and_is_told_no_more_than_that() -> None:
    bench = Bench()
    claim = bench.other.claim(key=b"x" * 32)
    assert claim.pieces == [pb.Claimed(claim_key=b"x" * 32, last=True)]


def test_a_long_prompt_is_told_in_frames_of_bounded_size() -> None:
    ids = [2**31 - 1 - number for number in range(900)]
    bench = Bench(prompt_ids=ids, prompt_tokens=len(ids), router_state=b"s" * (24 << 10))
    assert bench.other.claim().ids == ids


def test_as_many_claims_as_a_lost_router_had_streams_are_all_answered() -> None:
    bench = Bench(prompt_ids=range(900), prompt_tokens=900)
    strangers = [bytes([number]) * 32 for number in range(100)]
    for _ in range(5):
        bench.other.send(claims=[pb.Claim(claim_key=key) for key in (KEY, *strangers)] * 9)
    bench.other.read()
    told = [each.claim_key for frame in bench.other.frames for each in frame.claimed if each.last]
    assert Counter(told) == dict.fromkeys((KEY, *strangers), 45)


def test_claims_wait_as_they_came_and_each_is_answered_when_there_is_room() -> None:
    answered = []

    def answer(claim: pb.Claim, came_s: float) -> list[pb.Claimed]:
        answered.append((claim.claim_key, came_s))
        return [pb.Claimed(claim_key=claim.claim_key, ids=[2**31] * 8192, last=True)]

    answers = Answers(answer)
    assert all(answers.add(pb.Claim(claim_key=bytes([number])), float(number)) for number in range(3))
    assert not answered
    assert answers.fill(pb.WorkerFrame()) > 8192
    assert answered == [(b"\0", 0.0)]
    while not answers.empty:
        answers.fill(pb.WorkerFrame())
    assert answered == [(bytes([number]), float(number)) for number in range(3)]


def test_claims_that_no_router_would_send_are_refused() -> None:
    answers = Answers(nothing_known)
    assert not answers.add(pb.Claim(claim_key=b"k" * answers_module.CLAIM_BYTES), 0.0)
    assert all(answers.add(pb.Claim(claim_key=KEY), 0.0) for _ in range(answers_module.MOST_CLAIMS))
    assert not answers.add(pb.Claim(claim_key=KEY), 0.0)


def test_what_is_adopted_goes_on_there_and_is_over_where_it_was() -> None:
    bench = Bench()
    bench.make(7, 8)
    claim = bench.other.claim()
    bench.make(9)
    bench.first.read()
    bench.other.adopt(claim, slot=5)
    bench.make(10)
    updates = bench.other.updates()
    assert {(each.slot, each.attempt) for each in updates} == {(5, 2)}
    assert [(each.first_index, list(each.token_ids)) for each in updates] == [(2, [9, 10])]
    [over] = bench.first.updates()
    assert (over.slot, over.attempt, over.end.reason) == (1, 1, pb.END_REASON_CLAIMED)
    bench.report({}, finished=[finish(bench.engine.handle(0), FinishReason.LENGTH)])
    assert [each.end.reason for each in bench.other.updates()] == [pb.END_REASON_LENGTH]
    assert bench.first.updates() == []
    assert not bench.engine.aborted


def test_a_late_cancel_of_the_router_that_had_it_harms_nothing() -> None:
    bench = Bench()
    claim = bench.other.claim()
    bench.other.adopt(claim)
    bench.first.send(cancels=[pb.Cancel(slot=1, attempt=1)])
    assert not bench.engine.aborted


def test_what_is_adopted_and_cancelled_with_one_frame_ends() -> None:
    bench = Bench()
    adopt = pb.Adopt(handle=bench.other.claim().head.handle, slot=9, attempt=2, claim_key=KEY)
    bench.other.send(adoptions=[adopt], cancels=[pb.Cancel(slot=9, attempt=2)])
    assert bench.engine.aborted == [bench.engine.handle(0)]


def test_a_stream_goes_on_where_its_earlier_call_is_cancelled_with_the_frame_that_adopts_it() -> None:
    bench = Bench()
    adopt = pb.Adopt(handle=bench.first.claim().head.handle, slot=9, attempt=2, claim_key=KEY)
    bench.first.send(adoptions=[adopt], cancels=[pb.Cancel(slot=1, attempt=1)])
    bench.make(7)
    assert [each.slot for each in bench.first.updates() if each.token_ids] == [9]
    assert not bench.engine.aborted


def test_what_its_router_acknowledged_after_the_claim_is_told_again() -> None:
    bench = Bench()
    bench.make(7)
    claim = bench.other.claim()
    bench.make(8, 9)
    bench.first.send()  # acknowledges all three
    bench.other.adopt(claim)
    assert [(each.first_index, list(each.token_ids)) for each in bench.other.updates()] == [(1, [8, 9])]


def test_an_orphan_is_adopted_and_not_ended_with_what_its_router_left() -> None:
    bench = Bench()
    bench.make(7)
    held = bench.first.session.end()
    claim = bench.other.claim()
    assert claim.head.orphaned
    bench.other.adopt(claim)
    assert held == {}
    bench.make(8)
    assert [list(each.token_ids) for each in bench.other.updates()] == [[8]]


def test_what_is_sent_anew_ends_what_the_lost_router_left() -> None:
    bench = Bench()
    bench.first.session.end()
    bench.report()  # with credit for the other
    bench.other.send(submits=[submit(slot=3)])
    assert bench.engine.aborted == [bench.engine.handle(0)]
    assert bench.other.claim().head.submit.attempt == 1


@pytest.mark.parametrize(
    "changes", [{"attempt": 1}, {"handle": 999}, {"next_index": 50}, {"claim_key": b"x"}]
)
def test_what_cannot_be_adopted_comes_back_and_stays_where_it_was(changes: dict[str, Any]) -> None:
    bench = Bench()
    bench.make(7)
    bench.first.read()
    bench.other.adopt(bench.other.claim(), **changes)
    [returned] = [each for frame in bench.other.read() for each in frame.returned]
    assert returned.slot == 9
    bench.make(8)
    assert [list(each.token_ids) for each in bench.first.updates()] == [[8]]


def test_what_has_ended_can_be_claimed_for_a_while_and_then_no_more() -> None:
    bench = Bench()
    bench.report({bench.engine.handle(0): [7]}, finished=[finish(bench.engine.handle(0))], now=100.0)
    bench.first.send()  # knows the end
    bench.report(now=104.9)
    claim = bench.other.claim()
    assert (claim.ids, claim.head.end.reason) == ([*PROMPT, 7], pb.END_REASON_LENGTH)
    bench.report(now=105.0)
    assert not bench.other.claim().found


def test_log_probabilities_are_told_from_where_they_are_wanted() -> None:
    bench = Bench(sampling=types_pb2.SamplingParams(logprobs=1))
    handle = bench.engine.handle(0)
    values = tuple(TokenLogprobs(-float(each), (5,), (-0.5,)) for each in range(4))
    bench.report({handle: [7, 8]}, logprobs={handle: values[:2]})
    bench.first.send()
    bench.report({handle: [9, 10]}, logprobs={handle: values[2:]})
    claim = bench.other.claim(next_index=1)
    [told] = [each for each in claim.pieces if each.logprobs]
    assert (told.first_logprob, [each.chosen for each in told.logprobs]) == (1, [-1.0, -2.0, -3.0])
    bench.other.adopt(claim, next_index=1)
    [update] = bench.other.updates()
    assert [each.chosen for each in update.logprobs] == [-1.0, -2.0, -3.0]


def test_a_request_without_a_key_is_not_kept() -> None:
    bench = Bench(claim_key=b"")
    assert len(bench.desk.records) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 60)), max_size=80))
def test_what_is_kept_of_ended_requests_is_bounded(steps: list[tuple[bool, int, int]]) -> None:
    ended = Ended(most=4, most_ids=100)
    kept, owner = Records(ended), cast(Home, SimpleNamespace(number=1))
    jobs: dict[int, Job] = {}
    now = time.monotonic()
    for ending, name, size in steps:
        now += 0.3
        made = submit(
            prompt_ids=range(size),
            prompt_tokens=size,
            claim_key=bytes([name]) * 32,
            tenant_tag=bytes([name % 3]),
        )
        if ending and name in jobs:
            kept.ended(jobs[name], now)
        else:
            jobs[name] = Job(len(jobs) + 1, made)
            kept.add(Record(jobs[name], made, now, owner))
        kept.expire(now)
        assert len(ended) <= 4
        assert 0 <= ended.ids <= 100
        assert all(kept.find(bytes([each]) * 32) for each in range(10) if bytes([each]) * 32 in ended)
    kept.expire(now + kept.hold_s)
    assert (len(ended), ended.ids) == (0, 0)


def test_who_ends_many_requests_pushes_out_no_other_tenants() -> None:
    kept, owner, now = Records(Ended(most=8)), cast(Home, SimpleNamespace(number=1)), time.monotonic()

    def end(tag: bytes, number: int) -> bytes:
        made = submit(tenant_tag=tag, claim_key=tag + bytes([number]) * 16)
        job = Job(number, made)
        kept.add(Record(job, made, now, owner))
        kept.ended(job, now)
        return bytes(made.claim_key)

    quiet = end(b"q" * 16, 1)
    busy = [end(b"b" * 16, number) for number in range(2, 60)]
    assert kept.find(quiet)
    assert [bool(kept.find(each)) for each in busy] == [False] * 51 + [True] * 7


def test_what_is_adopted_waits_for_as_many_tokens_as_its_new_client_does() -> None:
    bench = Bench(merge=pb.Merge(tokens=8, wait_ms=50))
    assert bench.engine.requests[bench.engine.handle(0)].merge == Merge(8, 0.05)
    bench.other.adopt(bench.other.claim(), merge=pb.Merge(tokens=4, wait_ms=20))
    assert bench.engine.merged == {bench.engine.handle(0): Merge(4, 0.02)}


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (pb.Merge(), None),
        (pb.Merge(tokens=1, wait_ms=100), None),
        (pb.Merge(tokens=9), None),
        (pb.Merge(tokens=2**31, wait_ms=2**31), Merge(64, 0.25)),
    ],
)
def test_absurd_waits_are_cut_and_none_is_none(asked: pb.Merge, kept: Merge | None) -> None:
    bench = Bench(merge=asked)
    assert bench.engine.requests[bench.engine.handle(0)].merge == kept


def test_tokens_with_log_probabilities_never_wait() -> None:
    bench = Bench(merge=pb.Merge(tokens=8, wait_ms=50), sampling=types_pb2.SamplingParams(logprobs=0))
    assert bench.engine.requests[bench.engine.handle(0)].merge is None
