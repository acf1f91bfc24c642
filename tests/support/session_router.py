"""A router without clients: serves SessionService over real gRPC and does what a test says.

    async with SessionRouter() as router:
        …a worker dials router.address…
        session = await router.attached()
        record = session.submit([1, 2, 3], max_tokens=8)
        await record.ended()
        record.tokens, record.end

It proves itself, checks the worker's proof, acknowledges frames, resumes held requests from where its records
stop, and fails the test's record on any gap, doubled token, second end or oversized frame.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from headrace.v1 import session_pb2 as pb
from headrace.v1 import session_pb2_grpc

from services.common.members import MeshSecret, new_nonce, same
from tests.support.ports import free_port
from tests.support.waiting import eventually

SECRET = b"w" * 32
FRAME_LIMIT = 64 << 10
KEY, TAG = b"k" * 32, b"t" * 16


@dataclass(eq=False)
class Record:
    """One attempt of a request as this router has it."""

    request_id: str
    attempt: int
    slot: int
    next_index: int
    first_index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    updates: int = 0
    end: pb.SequenceEnd | None = None
    returned: pb.Returned | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether its terminal event came."""
        return self.end is not None or self.returned is not None

    async def ended(self) -> Self:
        """Waits for the terminal event; fails on anything that broke the contract."""
        await eventually(lambda: self.over or self.faults, f"{self.request_id} ends", 60)
        assert not self.faults, self.faults
        return self

    async def has(self, count: int) -> None:
        """Waits for so many tokens."""
        await eventually(lambda: len(self.tokens) >= count or self.over, f"{count} tokens", 60)
        assert not self.faults, self.faults

    def take(self, update: pb.SequenceUpdate) -> None:
        """Notes news, and whether they fit."""
        self.updates += 1
        if self.over:
            self.faults.append("news after the end")
        if update.token_ids and update.first_index != self.next_index:
            self.faults.append(f"index {update.first_index} where {self.next_index} comes next")
        self.tokens += update.token_ids
        self.logprobs += update.logprobs
        self.next_index += len(update.token_ids)
        if update.HasField("end"):
            self.end = update.end

    def give_back(self, returned: pb.Returned) -> None:
        """Notes that it was given back."""
        if self.over:
            self.faults.append("returned after the end")
        if returned.next_index != self.next_index:
            self.faults.append(f"returned at {returned.next_index}, sent were {self.next_index}")
        self.returned = returned


class RouterSession:
    """One session of a worker. `reading` may be cleared to be a slow reader."""

    def __init__(self, router: SessionRouter, hello: pb.Hello) -> None:
        self.hello = hello
        self.frames: list[pb.WorkerFrame] = []
        self.load = pb.Load()
        self.credit = pb.Credit()
        self.step_models: list[pb.StepModel] = []
        self.served: dict[bytes, tuple[int, int]] = {}
        self.draining: pb.Draining | None = None
        self.reading = asyncio.Event()
        self.reading.set()
        self.acknowledging = True
        self.open = True
        self.half_closed = False
        self.records: dict[int, Record] = {}
        self.outgoing: asyncio.Queue[pb.RouterFrame | None] = asyncio.Queue()
        self._router = router
        self._number = 2
        self._handled = 2

    def send(self, **fields: Any) -> int:
        """Sends a frame of these parts; returns its number."""
        self._number += 1
        frame = pb.RouterFrame(
            number=self._number, acknowledged_frame=self._handled if self.acknowledging else 0, **fields
        )
        self.outgoing.put_nowait(frame)
        return self._number

    def submit(self, prompt: Sequence[int], *, max_tokens: int = 16, **fields: Any) -> Record:
        """Submits a request; `fields` are those of Submit."""
        record, submit = self.prepare(prompt, max_tokens=max_tokens, **fields)
        self.send(submits=[submit])
        return record

    def prepare(
        self, prompt: Sequence[int], *, max_tokens: int = 16, **fields: Any
    ) -> tuple[Record, pb.Submit]:
        """A record and its Submit, not sent yet."""
        number = next(self._router.numbers)
        delivered = fields.get("delivered_ids", ())
        made: dict[str, Any] = {
            "slot": number,
            "request_id": f"request-{number}",
            "attempt": 1,
            "prompt_tokens": len(prompt),
            "prompt_ids": list(prompt),
            "next_index": len(delivered),
            "max_tokens": max_tokens,
            "kv_key": KEY,
            "tenant_tag": TAG,
            **fields,
        }
        submit = pb.Submit(**made)
        record = Record(
            submit.request_id, submit.attempt, submit.slot, len(delivered), first_index=len(delivered)
        )
        self.records[submit.slot] = record
        self._router.records[record.request_id, record.attempt] = record
        return record, submit

    def cancel(self, record: Record) -> None:
        """Cancels a request."""
        self.send(cancels=[pb.Cancel(slot=record.slot, attempt=record.attempt)])

    def break_off(self) -> None:
        """Ends the stream from this side."""
        self.outgoing.put_nowait(None)

    async def idle(self) -> None:
        """Waits until the worker reports that nothing runs, waits or holds blocks there."""
        after = len(self.frames)

        def quiet() -> bool:
            load = self.load
            return len(self.frames) > after + 1 and not (load.running or load.waiting or load.kv_blocks_held)

        await eventually(quiet, "the worker is idle", 60)
        spec = self.hello.kv_spec
        assert self.load.kv_blocks_free + self.load.kv_blocks_cached == spec.blocks

    def take(self, frame: pb.WorkerFrame) -> None:
        """Handles one frame of the worker."""
        self.frames.append(frame)
        faults = self._router.faults
        if frame.number != self._handled + 1:
            faults.append(f"frame {frame.number} after {self._handled}")
        if frame.ByteSize() > FRAME_LIMIT:
            faults.append(f"a frame of {frame.ByteSize()} bytes")
        self._handled = frame.number
        self._state(frame)
        for update in frame.updates:
            self._record(update.slot, update.attempt).take(update)
        for returned in frame.returned:
            self._record(returned.slot, returned.attempt).give_back(returned)
        if self.acknowledging and len(self.frames) % 4 == 0:
            self.send()

    def _state(self, frame: pb.WorkerFrame) -> None:
        if frame.HasField("load"):
            self.load = frame.load
        if frame.HasField("credit"):
            self.credit = frame.credit
        if frame.HasField("step_model"):
            self.step_models.append(frame.step_model)
        if frame.HasField("draining"):
            self.draining = frame.draining
        for each in frame.tenant_service:
            self.served[each.tenant_tag] = (each.prompt_tokens, each.output_tokens)

    def _record(self, slot: int, attempt: int) -> Record:
        record = self.records.get(slot)
        if record is None or record.attempt != attempt:
            self._router.faults.append(f"news of slot {slot}, attempt {attempt}, which nobody submitted")
            return Record("?", attempt, slot, 0, 0)
        return record


class SessionRouter:
    """One router process's session port."""

    def __init__(
        self,
        *,
        secret: bytes = SECRET,
        router_id: str = "router-1",
        grace_ms: int = 60_000,
        window_bytes: int | None = None,
    ) -> None:
        self.router_id = router_id
        self.siblings: Sequence[str] = ()
        self.sessions: list[RouterSession] = []
        self.records: dict[tuple[str, int], Record] = {}
        self.faults: list[str] = []
        self.numbers = itertools.count(1)
        self.port = free_port()
        self.lie = False  # prove with a wrong secret
        self.resuming = True
        self._mesh = MeshSecret(secret)
        self._grace_ms = grace_ms
        self._window_bytes = window_bytes
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """host:port, the same after a restart."""
        return f"127.0.0.1:{self.port}"

    @property
    def session(self) -> RouterSession | None:
        """The newest open session."""
        return next((each for each in reversed(self.sessions) if each.open), None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        assert not self.faults, self.faults[:5]

    async def start(self) -> None:
        """Listens."""
        options: list[tuple[str, int]] = [("grpc.so_reuseport", 0)]
        if self._window_bytes is not None:
            options += [("grpc.http2.lookahead_bytes", self._window_bytes), ("grpc.http2.bdp_probe", 0)]
        self._server = grpc.aio.server(options=options)
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """Is gone at once."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def attached(self, after: int = 0) -> RouterSession:
        """Waits for a session beyond the first `after` ones."""
        await eventually(
            lambda: len(self.sessions) > after and self.session and self.session.frames, "a session", 60
        )
        assert self.session is not None
        return self.session

    async def Session(
        self, frames: AsyncIterator[pb.WorkerFrame], context: Any
    ) -> AsyncIterator[pb.RouterFrame]:
        """One session."""
        hello = (await anext(frames)).hello
        nonce = new_nonce()
        mac = MeshSecret(b"x" * 32).router_proof(hello.nonce, nonce) if self.lie else None
        mac = mac or self._mesh.router_proof(hello.nonce, nonce)
        yield pb.RouterFrame(number=1, challenge=pb.Challenge(nonce=nonce, mac=mac))
        proof = (await anext(frames)).proof.mac
        if not same(self._mesh.worker_proof(hello.nonce, nonce, hello.incarnation), proof):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this port is for members of the mesh")
        session = RouterSession(self, hello)
        yield pb.RouterFrame(number=2, acknowledged_frame=2, welcome=self._welcome(session))
        self.sessions.append(session)
        reader = asyncio.create_task(_read(session, frames))
        try:
            while (frame := await session.outgoing.get()) is not None:
                yield frame
        finally:
            session.open = False
            reader.cancel()

    def _welcome(self, session: RouterSession) -> pb.Welcome:
        resume = []
        for held in session.hello.held if self.resuming else ():
            record = self.records.get((held.request_id, held.attempt))
            if record is None or record.over:
                continue
            record.slot = next(self.numbers)
            session.records[record.slot] = record
            resume.append(
                pb.ResumeRequest(
                    request_id=record.request_id,
                    slot=record.slot,
                    attempt=record.attempt,
                    next_index=record.next_index,
                    handle=held.handle,
                )
            )
        return pb.Welcome(
            router_id=self.router_id,
            session_id=f"session-{len(self.sessions)}",
            siblings=self.siblings,
            heartbeat_ms=200,
            resume_grace_ms=self._grace_ms,
            resume=resume,
        )


async def _read(session: RouterSession, frames: AsyncIterator[pb.WorkerFrame]) -> None:
    while True:
        await session.reading.wait()
        try:
            frame = await anext(frames)
        except StopAsyncIteration:
            break
        session.take(frame)
    session.half_closed = True
    session.break_off()
