"""Whatever a router says: its session contains it, the engine lives, another router's streams stay exact."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from headrace.v1 import session_pb2 as pb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.common.members import MeshSecret
from services.worker.metrics import WorkerMetrics
from services.worker.session.desk import Desk
from services.worker.session.faults import Misbehaved
from services.worker.session.handshake import FalseRouter, Handshake, Identity
from services.worker.session.job import Job
from services.worker.session.receipts import MOST_RECEIPTS
from services.worker.session.session import Session
from tests.support.piped_mesh import TalkingEngine, output_of
from tests.support.wire_fuzz import messages

TOKENS = 12
TURNS = 30
FRAME_BYTES = 64 << 10
RECEIVED = 2
"""Frames of a handshake."""
PROMPT = [4, 5, 6]


class Said(NamedTuple):
    """A frame, and how far its number is from the one that comes next."""

    frame: pb.RouterFrame
    skip: int


small, attempts, ids = st.integers(0, 4), st.integers(1, 2), st.lists(st.integers(0, 400), max_size=4)


def _submit(slot: int, attempt: int, prompt: list[int], more: int, delivered: list[int]) -> pb.Submit:
    """One that makes sense; `more` ids of its prompt are still to come."""
    return pb.Submit(
        slot=slot,
        request_id=f"r{slot}",
        attempt=attempt,
        prompt_ids=prompt,
        prompt_tokens=len(prompt) + more,
        delivered_ids=delivered,
        next_index=len(delivered),
        max_tokens=len(delivered) + 5,
        kv_key=b"k" * 32,
    )


sensible = st.builds(_submit, small, attempts, ids, st.sampled_from([0, 0, 2]), ids)
likely: dict[str, Any] = {
    "slot": small,
    "attempt": attempts,
    "acknowledged_frame": st.integers(0, 12),
    "handle": st.integers(0, 8),
    "submits": sensible,
    "prompt_pieces": st.builds(pb.PromptPiece, slot=small, attempt=attempts, offset=small, ids=ids),
    "cancels": st.builds(pb.Cancel, slot=small, attempt=attempts),
    "resume": st.builds(
        pb.ResumeRequest,
        request_id=st.sampled_from(["a", "held"]),
        slot=small,
        attempt=attempts,
        next_index=small,
        handle=st.integers(0, 8),
    ),
}
skips = st.one_of(st.just(0), st.just(0), st.just(0), st.integers(-1, 2), st.just(2**64 - 1))
said = st.lists(st.builds(Said, messages(pb.RouterFrame, likely), skips), max_size=10)
fuzzed = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Bench:
    """A worker with two sessions: a good router's, where one request runs, and a mad one's."""

    def __init__(self) -> None:
        self.engine = TalkingEngine()
        self.desk = Desk(self.engine, WorkerMetrics(CollectorRegistry()), lambda grace_s: None)
        self.desk.report(self.engine.report(), 0.0)
        self.good = self.open(pb.Welcome(router_id="good"), {})
        self.got: list[int] = []
        self.ends = 0
        self.written(self.good)
        submit = pb.Submit(slot=1, request_id="own", attempt=1, max_tokens=TOKENS, prompt_ids=PROMPT)
        submit.prompt_tokens = len(PROMPT)
        self._number = RECEIVED
        self._heard(3, submits=[submit])

    def open(self, welcome: pb.Welcome, held: dict[Any, Job]) -> Session:
        """Another session."""
        session = Session(self.desk, welcome, 0.0)
        session.begin(welcome, held, 0.0)
        return session

    def mad(self) -> Session:
        """The mad router's session, with its part of the credit."""
        session = self.open(pb.Welcome(router_id="mad"), {})
        self.turn()
        self.turn()
        grants = [frame.credit.sequences for frame in self.written(session)]
        assert grants[-1] > 0
        return session

    def _heard(self, frame: int, **commands: Any) -> None:
        self._number += 1
        self.good.handle(pb.RouterFrame(number=self._number, acknowledged_frame=frame, **commands), 0.0)

    def turn(self) -> None:
        """The engine makes a step, and the good router reads and acknowledges."""
        self.engine.step(self.desk, 0.0)
        for frame in self.written(self.good):
            self._heard(frame.number)
            for update in frame.updates:
                assert update.first_index == len(self.got)
                self.got += update.token_ids
                self.ends += update.HasField("end")

    def written(self, session: Session) -> list[pb.WorkerFrame]:
        """What a session has to say, each frame as the wire wants it."""
        frames = []
        while (frame := session.take()) is not None:
            assert frame.ByteSize() <= FRAME_BYTES
            frames.append(pb.WorkerFrame.FromString(frame.SerializeToString()))
        return frames

    def finish(self, mad: Session) -> None:
        """The mad router is gone; what it left ends, and the good one has all of its own."""
        for job in mad.end().values():
            self.desk.abandon(job)
        for _ in range(TURNS):
            self.turn()
        assert (self.got, self.ends) == (output_of(PROMPT, TOKENS), 1)
        assert self.engine.handle(0) not in self.engine.aborted


@fuzzed
@given(said, st.booleans())
def test_no_frame_harms_the_engine_or_another_router(talk: list[Said], reading: bool) -> None:
    bench = Bench()
    mad = bench.mad()
    number = RECEIVED
    with contextlib.suppress(Misbehaved):
        for frame, skip in talk:
            frame.number = max(0, min(number + 1 + skip, 2**64 - 1))
            number = max(number, frame.number)
            mad.handle(frame, 0.0)
            bench.turn()
            if reading:
                bench.written(mad)
            _is_bounded(mad, talk)
    bench.finish(mad)


def _is_bounded(session: Session, talk: list[Said]) -> None:
    submitted = sum(len(frame.submits) for frame, _ in talk)
    assert len(session._receipts) <= MOST_RECEIPTS
    assert len(session._seats.slots) <= submitted
    assert len(session._seats.jobs) <= submitted


@fuzzed
@given(messages(pb.Welcome, likely))
def test_whatever_a_welcome_resumes_each_held_request_goes_on_or_ends(welcome: pb.Welcome) -> None:
    bench = Bench()
    first = bench.mad()
    submits = [
        pb.Submit(slot=slot, request_id=name, attempt=1, max_tokens=9, prompt_ids=[slot], prompt_tokens=1)
        for slot, name in enumerate(("a", "held"), start=1)
    ]
    first.handle(pb.RouterFrame(number=3, acknowledged_frame=3, submits=submits), 0.0)
    bench.turn()
    held = first.end()
    handles = {job.handle for job in held.values()}
    assert len(handles) == 2
    second = Session(bench.desk, welcome, 0.0)
    with contextlib.suppress(Misbehaved):
        second.begin(welcome, held, 0.0)
    seated = {job.handle for job in second._seats.jobs.values()}
    assert all(handle in seated or handle in bench.engine.aborted for handle in handles)
    bench.finish(second)


@fuzzed
@given(messages(pb.RouterFrame), messages(pb.RouterFrame))
def test_whoever_answers_without_the_secret_gets_no_proof(
    challenge: pb.RouterFrame, welcome: pb.RouterFrame
) -> None:
    identity = Identity.__new__(Identity)
    identity.incarnation = 1
    identity._hello = pb.Hello(worker_id="w")
    handshake = Handshake(identity, MeshSecret(b"m" * 32))
    handshake.hello([])
    try:
        handshake.prove(challenge)
    except FalseRouter:
        pass
    else:
        raise AssertionError("it did not know the secret")
    try:
        assert handshake.welcome(welcome) == welcome.welcome
    except FalseRouter:
        assert not welcome.HasField("welcome")
