"""Whatever a worker says: its session contains it, the router lives, a neighbour's streams stay exact."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from headrace.v1 import session_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import errors
from services.common.members import MeshSecret
from services.router.policy.kv_feed import EVENTS_QUEUED
from services.router.sessions.handshake import Handshake
from services.router.sessions.servicer import HANDSHAKE_FRAMES
from services.router.sessions.session import Session
from tests.support.piped_mesh import PipedMesh, outcome, output_of
from tests.support.wire_fuzz import messages, whole_messages

MESH = MeshSecret(b"m" * 32)
TOKENS = 6
SETTLED = 60
"""Turns after which all that can end has ended."""


class Said(NamedTuple):
    """A frame, and how far its number is from the one that comes next."""

    frame: session_pb2.WorkerFrame
    skip: int


slots, attempts, indices = st.integers(1, 4), st.integers(1, 2), st.integers(0, 8)
names = st.binary(min_size=16, max_size=16)
ends = messages(session_pb2.SequenceEnd, {"reason": st.integers(0, 8)})
sensible = {"slot": slots, "attempt": attempts, "first_index": indices}
updates = whole_messages(
    session_pb2.SequenceUpdate,
    {**sensible, "token_ids": st.lists(st.integers(3, 400), max_size=4), "end": st.none() | ends},
)
new_ids = st.lists(st.integers(3, 400), min_size=1, max_size=3)
columns = st.lists(st.tuples(slots, attempts, indices, new_ids), min_size=1, max_size=4).map(
    lambda rows: session_pb2.NextTokens(
        slots=[row[0] for row in rows],
        attempts=[row[1] for row in rows],
        indices=[row[2] for row in rows],
        token_ids=[token for row in rows for token in row[3]],
        counts=[len(row[3]) for row in rows] if max(len(row[3]) for row in rows) > 1 else [],
    )
)
returned = whole_messages(
    session_pb2.Returned, {"slot": slots, "attempt": attempts, "reason": st.integers(0, 8)}
)
frames = messages(
    session_pb2.WorkerFrame,
    {
        **sensible,
        "updates": updates,
        "next_tokens": columns,
        "returned": returned,
        "stored": names,
        "removed": names,
        "first_number": st.integers(1, 6),
        "next_event_number": st.integers(1, 6),
        "KvSnapshot.digests": names,
        "tenant_tag": names,
    },
)
numbers = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1, 3, 2**64 - 1])
said = st.lists(st.builds(Said, frames, numbers), max_size=8)
kv_specs = whole_messages(
    session_pb2.KvSpec,
    {each: st.integers(0, 2**32 - 1) for each in ("block_tokens", "blocks", "max_sequences", "max_tokens")},
)


def _sensible(spec: session_pb2.KvSpec, more: session_pb2.Hello) -> session_pb2.Hello:
    hello = session_pb2.Hello(protocol_version=1, worker_id="odd", model="m", kv_spec=spec)
    hello.MergeFrom(more)
    return hello


hellos = st.builds(_sensible, kv_specs, messages(session_pb2.Hello))
fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fuzzed
@given(said)
def test_no_frame_harms_the_router_or_a_neighbour(talk: list[Said]) -> None:
    asyncio.run(_talked(talk))


async def _talked(talk: list[Said]) -> None:
    mesh = PipedMesh("good", "mad", return_s=0.0)
    with mesh.time_is_ours():
        mesh.turn()
        own = [mesh.launch([50 + each], max_tokens=TOKENS, pool="good") for each in range(2)]
        others = [mesh.launch([70 + each], max_tokens=TOKENS) for each in range(3)]
        mesh.turn()
        _talk(mesh, talk)
        for _ in range(SETTLED):
            mesh.turn()
        mesh.workers["mad"].detach()
        for _ in range(SETTLED):
            mesh.turn()
    for flight in own:
        expected = output_of(list(flight.order.prompt_ids), TOKENS)
        assert (flight.ids, flight.attempt, outcome(flight)) == (expected, 1, "finished")
    for flight in others:
        assert outcome(flight) != "runs", "it ended, once"
        assert flight.seat is None or flight.over
    assert len(mesh.dispatcher.scheduler) == 0


def _talk(mesh: PipedMesh, talk: list[Said]) -> None:
    worker = mesh.workers["mad"]
    for frame, skip in talk:
        if worker.theirs is None:
            return
        session, number = worker.theirs, worker.theirs.outbox.acknowledge or HANDSHAKE_FRAMES
        frame.number = max(0, min(number + 1 + skip, 2**64 - 1))
        try:
            worker.tell(frame)
        except errors.HeadraceError:
            worker.detach()
        _is_sound(session, mesh)
        mesh.turn()


def _is_sound(session: Session, mesh: PipedMesh) -> None:
    """Amounts are amounts, and what is kept for a worker is bounded by what it was given."""
    view = session.view(mesh.now)
    amounts = (view.sequences, view.waiting_tokens, view.batch_sequences, view.batch_waiting_tokens)
    assert min(*amounts, view.free_blocks, view.running_context) >= 0
    for flight in session.flights():
        assert flight.seat is not None
        assert flight.seat.worker_id == session.worker_id
    assert session.seated <= len(mesh.flights)
    if session.feed is not None:
        assert session.feed.queued <= EVENTS_QUEUED


@fuzzed
@given(messages(session_pb2.WorkerFrame), messages(session_pb2.WorkerFrame))
def test_a_stranger_gets_no_further_than_the_handshake(
    first: session_pb2.WorkerFrame, second: session_pb2.WorkerFrame
) -> None:
    handshake = Handshake(MESH)
    try:
        challenge = handshake.challenge(first)
    except errors.Unauthenticated:
        return
    assert len(challenge.challenge.nonce) == 32
    try:
        handshake.admit(second)
    except errors.Unauthenticated:
        return
    raise AssertionError("nobody knew the secret")


@fuzzed
@given(hellos)
def test_whatever_a_member_says_of_itself_it_is_refused_or_served(hello: session_pb2.Hello) -> None:
    asyncio.run(_introduced(hello))


async def _introduced(hello: session_pb2.Hello) -> None:
    admitted = _shaken(hello)
    if admitted is None:
        return
    mesh = PipedMesh("good")
    with mesh.time_is_ours():
        mesh.turn()
        joined = Session(
            admitted,
            "s",
            mesh.settings.session,
            mesh.dispatcher,
            mesh.metrics,
            frames_received=HANDSHAKE_FRAMES,
            frames_sent=HANDSHAKE_FRAMES,
            now=mesh.now,
        )
        mesh.dispatcher.join(joined)
        credit = session_pb2.Credit(prefill_tokens=1000, sequences=8, kv_blocks=100)
        joined.handle(session_pb2.WorkerFrame(number=3, load=session_pb2.Load(), credit=credit), mesh.now)
        own = mesh.launch([50], max_tokens=TOKENS, pool="good")
        for _ in range(SETTLED // 2):
            mesh.turn()
    assert (own.ids, outcome(own)) == (output_of([50], TOKENS), "finished")


def _shaken(hello: session_pb2.Hello) -> session_pb2.Hello | None:
    """What the router takes for a Hello after a good proof; None: it was refused."""
    hello.nonce = b"n" * 32
    handshake = Handshake(MESH)
    nonce = handshake.challenge(session_pb2.WorkerFrame(number=1, hello=hello)).challenge.nonce
    mac = MESH.worker_proof(hello.nonce, nonce, hello.incarnation)
    try:
        return handshake.admit(session_pb2.WorkerFrame(number=2, proof=session_pb2.Proof(mac=mac)))
    except errors.FailedPrecondition:
        return None
