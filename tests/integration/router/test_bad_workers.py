"""Workers that say what cannot be: contained, counted, reported, closed if it goes on; neighbours unaware."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from headrace.v1 import router_pb2, session_pb2, session_pb2_grpc, types_pb2

from services.common import conduct
from services.common.conduct import BURST
from services.common.members import MeshSecret
from services.common.transport import Tls, channel
from tests.support.router_house import Answer, House, open_house, read
from tests.support.scripted_worker import ScriptedWorker, end, update
from tests.support.waiting import eventually

PROMPT = "The router sends"
ANSWER = " each request to the worker that will answer it first. 日本語 🎡"
MOST, MOST_LONG = 2**32 - 1, 2**64 - 1
METHOD = "SessionService.Session"
Said = dict[str, Any]
Nonsense = Callable[[session_pb2.Submit], Said]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as it:
        yield it


class Neighbour:
    """A stream on a good worker, half of which has come."""

    def __init__(self, house: House, worker: ScriptedWorker, call: Any, submit: session_pb2.Submit) -> None:
        self._house = house
        self._worker = worker
        self._call = call
        self._submit = submit
        self._ids = house.tokenizer.ids(ANSWER)
        self._half = len(self._ids) // 2
        worker.say(update(submit, 0, self._ids[: self._half]))

    @classmethod
    async def of(cls, house: House) -> Neighbour:
        worker = await house.worker(worker_id="good", labels={"pool": "good"}).connect()
        call = house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT, required_labels={"pool": "good"}))
        return cls(house, worker, call, await worker.submitted())

    async def is_undisturbed(self) -> None:
        """The other half comes, and the whole is exact."""
        self._worker.say(update(self._submit, self._half, self._ids[self._half :], end()))
        answer = await read(self._call)
        assert (answer.error, answer.text, answer.ids) == (None, ANSWER, self._ids)
        assert answer.finished is not None
        assert (answer.finished.attempts, answer.finished.worker_id) == (1, "good")


def _news(submit: session_pb2.Submit, first: int, **more: Any) -> Said:
    return {"updates": [update(submit, first, [5, 6], **more)]}


def _other_attempt(submit: session_pb2.Submit) -> Said:
    other = update(submit, 0, [5])
    other.attempt += 1
    return {"updates": [other]}


def _kv(first: int, *names: bytes) -> Said:
    events = [session_pb2.KvEvent(stored=name) for name in names]
    return {"kv_events": session_pb2.KvEvents(first_number=first, events=events)}


def _load(**values: int) -> Said:
    return {"load": session_pb2.Load(**values)}


def _credit(**values: int) -> Said:
    return {"credit": session_pb2.Credit(**values)}


def _model(value: float) -> Said:
    return {"step_model": session_pb2.StepModel(a=value, b=1e-5, c=0, d=0, e=0, upper_quantile=1)}


NONSENSE: dict[str, tuple[str, Nonsense]] = {
    "another attempt": ("other_attempt", _other_attempt),
    "a slot that nobody has": ("unknown_slot", lambda _: {"updates": [session_pb2.SequenceUpdate(slot=99)]}),
    "a slot that nobody has, given back": ("unknown_slot", lambda _: {"returned": [{"slot": 99}]}),
    "credit beyond all": ("absurd_credit", lambda _: _credit(prefill_tokens=MOST_LONG, sequences=1)),
    "sequences beyond all": ("absurd_credit", lambda _: _credit(prefill_tokens=9, sequences=MOST)),
    "a load beyond all": ("absurd_load", lambda _: _load(waiting_tokens=MOST_LONG, running=MOST)),
    "more blocks than it has": ("absurd_load", lambda _: _load(kv_blocks_held=1025)),
    "a step of centuries": ("absurd_load", lambda _: _load(step_us=MOST_LONG)),
    "steps that take no number": ("absurd_step_model", lambda _: _model(math.nan)),
    "steps that take less than no time": ("absurd_step_model", lambda _: _model(-1.0)),
    "steps that never end": ("absurd_step_model", lambda _: _model(math.inf)),
    "commands of the future": ("absurd_acknowledgement", lambda _: {"acknowledged_command": MOST_LONG}),
    "a tenant without a tag": ("served", lambda _: {"tenant_service": [{"tenant_tag": b"short"}]}),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_is_counted_and_reported_and_no_neighbour_notices(house: House, name: str) -> None:
    kind, said = NONSENSE[name]
    neighbour = await Neighbour.of(house)
    mad = await house.worker(worker_id="mad", labels={"pool": "mad"}).connect()
    call = house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT, required_labels={"pool": "mad"}))
    submit = await mad.submitted()
    with structlog.testing.capture_logs() as logs:
        mad.raw(**said(submit))
        await eventually(lambda: house.metric("headrace_bad_frames_total", kind=kind) >= 1, "it is counted")
    assert [each["kind"] for each in logs if each["event"] == "bad_frame"] == [kind]
    await neighbour.is_undisturbed()
    ids = house.tokenizer.ids(ANSWER)
    mad.say(update(submit, 0, ids, end()))
    answer = await read(call)
    assert (answer.error, answer.ids) == (None, ids), "its own stream goes on where it made sense"


@pytest.mark.parametrize("name", NONSENSE)
async def test_a_worker_that_goes_on_with_it_is_closed(
    house: House, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "FORGIVEN_A_S", 0.0)  # however long the machine stands still
    _, said = NONSENSE[name]
    neighbour = await Neighbour.of(house)
    mad = await house.worker(worker_id="mad", labels={"pool": "mad"}).connect(beat=False)
    nothing = said(session_pb2.Submit(slot=77, attempt=1))
    with structlog.testing.capture_logs() as logs:
        for _ in range(BURST + 1):
            mad.raw(**nothing)
        assert await mad.ended() is grpc.StatusCode.FAILED_PRECONDITION
    assert len([each for each in logs if each["event"] == "bad_frame"]) == 1, "its kind is reported once"
    left = [(each["why"], each["log_level"]) for each in logs if each["event"] == "worker_left"]
    assert left == [("BAD_FRAMES", "warning")]
    await neighbour.is_undisturbed()


async def test_a_wrong_index_costs_the_attempt_and_no_token(house: House) -> None:
    neighbour = await Neighbour.of(house)
    ids = house.tokenizer.ids(ANSWER)
    mad = await house.worker(worker_id="mad", labels={"pool": "mad"}).connect()
    call = house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT, required_labels={"pool": "mad"}))
    submit = await mad.submitted()
    mad.say(update(submit, 0, ids[:3]))
    mad.say(update(submit, 1, [9, 9]), update(submit, MOST, [9]))
    again = await mad.submitted(2)
    assert (again.attempt, list(again.delivered_ids)) == (2, ids[:3])
    mad.say(update(again, 3, ids[3:], end()))
    answer = await read(call)
    assert (answer.error, answer.ids) == (None, ids)
    await neighbour.is_undisturbed()


async def test_kv_events_out_of_order_cost_the_worker_its_cache_and_nobody_else(house: House) -> None:
    neighbour = await Neighbour.of(house)
    mad = await house.worker(worker_id="mad", capabilities=["prefix_cache"]).connect()
    for first in (1, 700, 3, MOST_LONG, 2):
        mad.raw(**_kv(first, secrets.token_bytes(16)))
    mad.raw(**_kv(1, b"short"))
    mad.raw(kv_snapshot=session_pb2.KvSnapshot(next_event_number=9, digests=b"odd", last=True))
    await eventually(lambda: house.metric("headrace_bad_frames_total", kind="kv_news") >= 2, "counted")
    await eventually(lambda: any(frame.kv_snapshot_wanted for frame in mad.frames), "all is asked for")
    await neighbour.is_undisturbed()


@pytest.mark.parametrize("version", [0, 2])
async def test_an_older_and_a_newer_protocol_are_refused_with_the_reason(house: House, version: int) -> None:
    neighbour = await Neighbour.of(house)
    with structlog.testing.capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as refused:
        await house.worker(worker_id="other", protocol_version=version).connect()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"protocol version {version} is not served" in (refused.value.details() or "")
    refusals = {"method": METHOD, "code": "FAILED_PRECONDITION"}
    await eventually(lambda: house.metric("headrace_rpc_calls_total", **refusals) == 1, "the call is counted")
    assert [each["worker"] for each in logs if each["event"] == "worker_refused"] == ["other"]
    await neighbour.is_undisturbed()


async def test_a_newer_worker_may_say_more_than_is_understood(house: House) -> None:
    mad = await house.worker().connect(beat=False)
    call = house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT))
    submit, ids = await mad.submitted(), house.tokenizer.ids(ANSWER)
    frame = session_pb2.WorkerFrame(number=4, updates=[update(submit, 0, ids, end())])
    unknown = b"\xfa\x3f\x05later"  # field 1023, 5 bytes
    frame.MergeFromString(unknown)
    mad._outgoing.put_nowait(frame)
    answer = await read(call)
    assert (answer.error, answer.ids) == (None, ids)


async def test_an_end_of_an_unknown_kind_is_an_error_of_one_stream(house: House) -> None:
    neighbour = await Neighbour.of(house)
    worker = await house.worker(worker_id="newer", labels={"pool": "newer"}).connect()
    call = house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT, required_labels={"pool": "newer"}))
    strange = end(99, message="x" * 100_000)  # type: ignore[arg-type]
    worker.say(update(await worker.submitted(), 0, [5], strange))
    answer = await read(call)
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.INTERNAL
    await neighbour.is_undisturbed()


@pytest.mark.parametrize("queue_us", [1, MOST_LONG])
async def test_absurd_times_and_usage_do_not_reach_the_bill(house: House, queue_us: int) -> None:
    worker = await house.worker().connect()
    call = house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT))
    submit = await worker.submitted()
    usage = types_pb2.Usage(prompt_tokens=MOST, cached_tokens=MOST, output_tokens=MOST)
    times = {"queue_us": queue_us, "prefill_us": MOST_LONG, "decode_us": MOST_LONG}
    ids = house.tokenizer.ids(ANSWER)
    worker.say(update(submit, 0, ids, end(usage=usage, **times)))
    answer = await read(call)
    assert answer.error is None
    assert answer.finished is not None
    told = answer.finished.usage
    assert (told.prompt_tokens, told.output_tokens) == (submit.prompt_tokens, len(ids))
    assert told.cached_tokens <= submit.prompt_tokens
    assert answer.finished.timings.total_us < 60_000_000


async def test_garbage_in_the_middle_ends_the_session_and_moves_what_ran_there(house: House) -> None:
    neighbour = await Neighbour.of(house)
    async with channel(house.session_address, Tls()) as open_channel:
        raw = RawWorker(house, open_channel)
        await raw.connect()
        call = house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT, required_labels={"pool": "raw"}))
        await eventually(lambda: raw.submits, "it has the request")
        ids = house.tokenizer.ids(ANSWER)
        raw.send(session_pb2.WorkerFrame(number=4, updates=[update(raw.submits[0], 0, ids[:4])]))
        await eventually(lambda: house.metric("headrace_output_tokens_total") >= 4, "four tokens")
        raw.outgoing.put_nowait(b"\xff\xff\xff\xff garbage")
        assert await raw.call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert house.metric("headrace_bad_frames_total", kind="unreadable") == 1
        other = await house.worker(worker_id="other", labels={"pool": "raw"}).connect()
        again = await other.submitted()
        assert list(again.delivered_ids) == ids[:4]
        other.say(update(again, 4, ids[4:], end()))
        answer: Answer = await read(call)
        assert (answer.error, answer.ids) == (None, ids)
    await neighbour.is_undisturbed()


class RawWorker:
    """Writes bytes where others write frames."""

    def __init__(self, house: House, open_channel: grpc.aio.Channel) -> None:
        self.outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self.submits: list[session_pb2.Submit] = []
        self._scripted = house.worker(worker_id="raw", labels={"pool": "raw"})
        self._house = house
        self.call: Any = open_channel.stream_stream("/headrace.v1.SessionService/Session")(self._bytes())

    async def connect(self) -> None:
        """Shakes hands, grants credit, and notes what is submitted."""
        hello, mesh = self._scripted._hello, self._house.mesh
        self.send(session_pb2.WorkerFrame(number=1, hello=hello))
        challenge = session_pb2.RouterFrame.FromString(await self.call.read()).challenge
        mac = mesh.worker_proof(hello.nonce, challenge.nonce, hello.incarnation)
        self.send(session_pb2.WorkerFrame(number=2, proof=session_pb2.Proof(mac=mac)))
        credit = session_pb2.Credit(prefill_tokens=1000, sequences=4, kv_blocks=100)
        self.send(session_pb2.WorkerFrame(number=3, load=session_pb2.Load(), credit=credit))
        self._reading = asyncio.create_task(self._read())

    def send(self, frame: session_pb2.WorkerFrame) -> None:
        """A good frame."""
        self.outgoing.put_nowait(frame.SerializeToString())

    async def _bytes(self) -> AsyncIterator[bytes]:
        while True:
            yield await self.outgoing.get()

    async def _read(self) -> None:
        while (got := await self.call.read()) is not grpc.aio.EOF:
            self.submits.extend(session_pb2.RouterFrame.FromString(got).submits)


async def test_strangers_are_counted_reported_and_change_nothing(house: House) -> None:
    neighbour = await Neighbour.of(house)
    hello = house.worker(worker_id="good")._hello  # the good one's name, without the secret
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            async with channel(house.session_address, Tls()) as open_channel:
                stub = session_pb2_grpc.SessionServiceStub(open_channel)
                call = stub.Session()
                await call.write(session_pb2.WorkerFrame(number=1, hello=hello))
                challenge = (await call.read()).challenge  # type: ignore[union-attr]
                wrong = MeshSecret(secrets.token_bytes(32))
                mac = wrong.worker_proof(hello.nonce, challenge.nonce, hello.incarnation)
                await call.write(session_pb2.WorkerFrame(number=2, proof=session_pb2.Proof(mac=mac)))
                assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
                call.cancel()
    assert house.metric("headrace_strangers_total", method=METHOD) == 3
    reports = [each for each in logs if each["event"] == "stranger"]
    assert reports, "somebody who reads logs learns of it"
    assert all(each["method"] == METHOD and each["peer"] for each in reports)
    await neighbour.is_undisturbed()
