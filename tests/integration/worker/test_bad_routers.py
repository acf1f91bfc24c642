"""Routers that say what cannot be: contained, counted, reported, and left if it goes on; no other notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import structlog
from headrace.v1 import session_pb2 as pb
from headrace.v1 import types_pb2

from services.common import conduct
from services.common.conduct import BURST
from services.common.members import MeshSecret, new_nonce
from tests.support.gated_engine import output_of
from tests.support.session_router import SECRET, Record, RouterSession, SessionRouter
from tests.support.waiting import eventually
from tests.support.worker_service import RunningWorker, running_worker

MOST, MOST_LONG = 2**32 - 1, 2**64 - 1
TOKENS = 60
PROMPT = [7, 3, 9, 1]
ENDLESS = types_pb2.SamplingParams(ignore_eos=True)
Parts = dict[str, Any]


class Scene(NamedTuple):
    """A worker with a good router, whose stream is under way, and a mad one."""

    worker: RunningWorker
    good: RouterSession
    mad: RouterSession
    mad_router: SessionRouter
    own: Record

    async def is_undisturbed(self) -> None:
        """The good router's stream ends exact, in the session where it began."""
        self.worker.gate.open()
        await self.own.ended()
        assert self.own.end is not None
        assert self.own.end.reason == pb.END_REASON_LENGTH
        assert self.own.tokens == output_of(PROMPT, TOKENS)
        assert self.good.open
        assert await self.worker.is_serving()

    def faults(self, kind: str) -> float:
        return self.worker.value("headrace_worker_bad_frames_total", kind=kind)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with (
        SessionRouter(router_id="good") as one,
        SessionRouter(router_id="mad") as two,
        running_worker(tmp_path, one.address, two.address) as worker,
    ):
        good, mad = await one.attached(), await two.attached()
        await eventually(lambda: good.credit.sequences and mad.credit.sequences, "both have credit")
        worker.gate.allow(10)
        own = good.submit(PROMPT, max_tokens=TOKENS, sampling=ENDLESS)
        await own.has(3)
        yield Scene(worker, good, mad, two, own)
        two.faults.clear()  # answers to what it made up


def _submit(**changes: Any) -> Parts:
    made = {
        "slot": 5,
        "request_id": "x",
        "attempt": 1,
        "prompt_tokens": 2,
        "prompt_ids": [1, 2],
        "max_tokens": 3,
        **changes,
    }
    return {"submits": [pb.Submit(**made)]}


NONSENSE: dict[str, tuple[str, Callable[[], Parts]]] = {
    "the end of a slot that nobody has": ("unknown_slot", lambda: {"cancels": [pb.Cancel(slot=999)]}),
    "a piece of no prompt": ("stray_piece", lambda: {"prompt_pieces": [pb.PromptPiece(slot=9, ids=[1])]}),
    "a request without a prompt": (
        "malformed_submit",
        lambda: _submit(slot=MOST, prompt_tokens=0, prompt_ids=[]),
    ),
    "tokens beyond their index": ("malformed_submit", lambda: _submit(slot=MOST, delivered_ids=[1, 2])),
    "a request for no token": ("malformed_submit", lambda: _submit(slot=MOST, max_tokens=0)),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_counted_and_reported_and_no_other_router_notices(scene: Scene, name: str) -> None:
    kind, said = NONSENSE[name]
    with structlog.testing.capture_logs() as logs:
        scene.mad.send(**said())
        await eventually(lambda: scene.faults(kind) >= 1, "it is counted")
    assert kind in [each["kind"] for each in logs if each["event"] == "bad_frame"]
    assert scene.mad.open
    await scene.is_undisturbed()


async def test_a_router_that_goes_on_with_it_is_left_and_dialled_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "FORGIVEN_A_S", 0.0)  # however long the machine stands still
    with structlog.testing.capture_logs() as logs:
        for slot in range(BURST + 1):
            scene.mad.send(cancels=[pb.Cancel(slot=10_000 + slot)])
        await scene.mad_router.attached(after=1)
    assert scene.worker.value("headrace_worker_session_failures_total", kind="misbehaved") == 1
    assert len([each for each in logs if each["event"] == "bad_frame"]) == 1, "its kind is reported once"
    assert [each["kind"] for each in logs if each["event"] == "session_failed"] == ["misbehaved"]
    await scene.is_undisturbed()


async def test_a_frame_that_is_missing_ends_the_session_for_what_it_said_is_not_known(scene: Scene) -> None:
    scene.mad.outgoing.put_nowait(pb.RouterFrame(number=900, **_submit()))
    await scene.mad_router.attached(after=1)
    assert scene.faults("frame_gap") == 1
    await scene.is_undisturbed()


async def test_a_request_with_absurd_values_ends_alone(scene: Scene) -> None:
    nan, inf = float("nan"), float("inf")
    absurd = [
        {"temperature": nan},
        {"temperature": -1.0},
        {"top_p": inf},
        {"top_p": -0.5},
        {"min_p": nan},
        {"repetition_penalty": 0.0},
        {"presence_penalty": inf},
        {"top_k": MOST, "temperature": 1e30},
        {"stop_token_ids": [MOST]},
        {"min_tokens": MOST},
    ]
    records = [
        scene.mad.submit(PROMPT, max_tokens=4, sampling=types_pb2.SamplingParams(**values))
        for values in absurd
    ]
    times = {"remaining_ms": MOST_LONG, "waited_ms": MOST_LONG, "ttft_target_ms": MOST, "tpot_target_ms": 0}
    records.append(scene.mad.submit(PROMPT, max_tokens=4, sampling=ENDLESS, **times))
    records.append(scene.mad.submit([MOST, 1], max_tokens=4, sampling=ENDLESS))
    records.append(scene.mad.submit(PROMPT, max_tokens=4, delivered_ids=[MOST], sampling=ENDLESS))
    records.append(scene.mad.submit(PROMPT, max_tokens=4, latency_class=99, expected_output_tokens=MOST))
    scene.worker.gate.open()
    for record in records:
        await record.ended()
    await scene.is_undisturbed()


async def test_demand_and_acknowledgements_beyond_all_take_nothing_from_others(scene: Scene) -> None:
    scene.mad.send(demand=pb.Demand(prefill_tokens=MOST_LONG, requests=MOST))
    number = scene.mad._number + 1
    scene.mad._number = number
    scene.mad.outgoing.put_nowait(pb.RouterFrame(number=number, acknowledged_frame=MOST_LONG))
    await eventually(lambda: scene.faults("acknowledged_frame") == 1, "counted")
    scene.worker.gate.open()
    more = [scene.good.submit([each, 4], max_tokens=5, sampling=ENDLESS) for each in range(2)]
    for each, record in enumerate(more):
        await record.ended()
        assert record.tokens == output_of([each, 4], 5)
    await scene.is_undisturbed()


async def test_a_newer_router_may_say_more_than_is_understood(scene: Scene) -> None:
    record, submit = scene.mad.prepare(PROMPT, max_tokens=5, sampling=ENDLESS)
    frame = pb.RouterFrame(number=scene.mad._number + 1, submits=[submit])
    frame.MergeFromString(b"\xfa\x3f\x05later")  # field 1023, 5 bytes
    scene.mad._number += 1
    scene.mad.outgoing.put_nowait(frame)
    scene.worker.gate.open()
    await record.ended()
    assert record.tokens == output_of(PROMPT, 5)
    await scene.is_undisturbed()


class RawRouter:
    """Serves sessions in bytes: good ones until `lie` is set, which then follows the Welcome."""

    def __init__(self) -> None:
        self.lie: bytes | None = None
        self.sessions = 0
        self._mesh = MeshSecret(SECRET)

    async def Session(self, frames: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        hello = pb.WorkerFrame.FromString(await anext(frames)).hello
        nonce = new_nonce()
        mac = self._mesh.router_proof(hello.nonce, nonce)
        yield pb.RouterFrame(number=1, challenge=pb.Challenge(nonce=nonce, mac=mac)).SerializeToString()
        await anext(frames)
        self.sessions += 1
        yield pb.RouterFrame(number=2, welcome=pb.Welcome(router_id="raw")).SerializeToString()
        if self.lie is not None:
            yield self.lie
        await asyncio.Event().wait()


async def test_garbage_ends_the_session_with_who_sent_it_and_no_other(tmp_path: Path) -> None:
    raw = RawRouter()
    raw.lie = b"\xff\xff\xff\xff garbage"
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {"Session": grpc.stream_stream_rpc_method_handler(raw.Session)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("headrace.v1.SessionService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            SessionRouter() as router,
            running_worker(tmp_path, router.address, f"127.0.0.1:{port}") as worker,
        ):
            session = await router.attached()
            await eventually(lambda: session.credit.sequences, "credit")
            own = session.submit(PROMPT, max_tokens=TOKENS, sampling=ENDLESS)
            await eventually(lambda: raw.sessions >= 2, "it is dialled again")
            failures = "headrace_worker_session_failures_total"
            await eventually(lambda: worker.value(failures, kind="misbehaved") >= 1, "it is counted")
            await own.ended()
            assert own.tokens == output_of(PROMPT, TOKENS)
            assert session.open
    finally:
        await server.stop(0)
