"""A worker without an engine: speaks the session protocol over real gRPC, does what a test says.

By default it answers the handshake, grants credit and beats. What it says of sequences is up to the test
(`say`), or to a `script` that answers every Submit by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Self

import grpc
from headrace.v1 import session_pb2, session_pb2_grpc, types_pb2

from services.common.members import MeshSecret, new_nonce, same
from services.common.transport import Tls, channel
from tests.support.waiting import eventually

HEARTBEAT_S = 0.05
_incarnations = itertools.count(1)
END = session_pb2.SequenceEnd
Script = Callable[[session_pb2.Submit], Iterable[session_pb2.SequenceUpdate]]


def end(reason: session_pb2.EndReason = session_pb2.END_REASON_LENGTH, **fields: object) -> END:
    """The end of a sequence."""
    return END(reason=reason, **fields)  # type: ignore[arg-type]


def update(
    submit: session_pb2.Submit,
    first_index: int,
    ids: Sequence[int] = (),
    ending: END | None = None,
    logprobs: Sequence[types_pb2.PositionLogprobs] = (),
) -> session_pb2.SequenceUpdate:
    """News of a submitted sequence."""
    return session_pb2.SequenceUpdate(
        slot=submit.slot,
        attempt=submit.attempt,
        first_index=first_index,
        token_ids=list(ids),
        end=ending,
        logprobs=logprobs,
    )


def all_at_once(ids: Sequence[int], reason: session_pb2.EndReason = session_pb2.END_REASON_LENGTH) -> Script:
    """Answers every Submit with these ids, from where it wants them, and an end."""

    def script(submit: session_pb2.Submit) -> Iterable[session_pb2.SequenceUpdate]:
        return [update(submit, submit.next_index, ids[submit.next_index :], end(reason))]

    return script


class ScriptedWorker:
    """One worker; `connect` opens its session."""

    def __init__(
        self,
        address: str,
        mesh: MeshSecret,
        digests: types_pb2.ModelDigests,
        *,
        worker_id: str = "worker-1",
        model: str = "tiny",
        script: Script | None = None,
        capabilities: Sequence[str] = ("logprobs",),
        labels: dict[str, str] | None = None,
        max_tokens: int = 4096,
        sequences: int = 8,
        protocol_version: int = 1,
        incarnation: int | None = None,
        held: Sequence[session_pb2.HeldRequest] = (),
    ) -> None:
        self.worker_id = worker_id
        self.incarnation = incarnation or next(_incarnations)
        self.welcome: session_pb2.Welcome | None = None
        self.submits: list[session_pb2.Submit] = []
        self.pieces: list[session_pb2.PromptPiece] = []
        self.cancels: list[session_pb2.Cancel] = []
        self.frames: list[session_pb2.RouterFrame] = []
        self.drain: session_pb2.DrainRequest | None = None
        self.demand = session_pb2.Demand()
        self.status: grpc.StatusCode | None = None
        self.details = ""
        self.sequences = sequences
        self.load = session_pb2.Load()
        self._mesh = mesh
        self._script = script
        self._channel = channel(address, Tls())
        self._call: grpc.aio.StreamStreamCall[session_pb2.WorkerFrame, session_pb2.RouterFrame] | None = None
        self._outgoing: asyncio.Queue[session_pb2.WorkerFrame | None] = asyncio.Queue()
        self._number = 0
        self._acknowledged = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._hello = session_pb2.Hello(
            protocol_version=protocol_version,
            worker_id=worker_id,
            incarnation=self.incarnation,
            nonce=new_nonce(),
            model=model,
            digests=digests,
            engine="scripted",
            engine_version="1",
            device="none",
            kv_spec=session_pb2.KvSpec(block_tokens=64, blocks=1024, max_sequences=8, max_tokens=max_tokens),
            capabilities=capabilities,
            labels=labels or {},
            vocab_size=512,
            held=held,
        )

    async def connect(self, *, beat: bool = True, **parts: object) -> Self:
        """Shakes hands and starts to beat; `parts`: of its first frame.

        Raises AioRpcError when the router refuses.
        """
        stub = session_pb2_grpc.SessionServiceStub(self._channel)
        self._call = stub.Session(self._frames())
        self.raw(hello=self._hello)
        challenge = (await self._read()).challenge
        assert same(self._mesh.router_proof(self._hello.nonce, challenge.nonce), challenge.mac)
        proof = self._mesh.worker_proof(self._hello.nonce, challenge.nonce, self.incarnation)
        self.raw(proof=session_pb2.Proof(mac=proof))
        self.welcome = (await self._read()).welcome
        self._tasks.append(asyncio.create_task(self._receive()))
        self.say(**parts)  # type: ignore[arg-type]
        if beat:
            self._tasks.append(asyncio.create_task(self._beat()))
        return self

    def say(
        self,
        *updates: session_pb2.SequenceUpdate,
        returned: Sequence[session_pb2.Returned] = (),
        sequences: int | None = None,
        **parts: object,
    ) -> None:
        """One frame with news, load and credit."""
        credit = session_pb2.Credit(
            prefill_tokens=8192, sequences=self.sequences if sequences is None else sequences, kv_blocks=1024
        )
        self.raw(updates=updates, returned=returned, load=self.load, credit=credit, **parts)

    def raw(self, *, number: int | None = None, **parts: object) -> None:
        """One frame as it is."""
        self._number = self._number + 1 if number is None else self._number
        parts.setdefault("acknowledged_command", self._acknowledged)
        frame = session_pb2.WorkerFrame(number=number or self._number, **parts)  # type: ignore[arg-type]
        self._outgoing.put_nowait(frame)

    @property
    def idle(self) -> bool:
        """Whether all that was said is on its way."""
        return self._outgoing.empty()

    async def submitted(self, count: int = 1) -> session_pb2.Submit:
        """The `count`-th Submit, when it is there."""
        await eventually(lambda: len(self.submits) >= count, f"{self.worker_id}: submit {count}")
        return self.submits[count - 1]

    async def cancelled(self, count: int = 1) -> session_pb2.Cancel:
        """The `count`-th Cancel, when it is there."""
        await eventually(lambda: len(self.cancels) >= count, f"{self.worker_id}: cancel {count}")
        return self.cancels[count - 1]

    async def ended(self) -> grpc.StatusCode:
        """The status that the router ended the session with."""
        await eventually(lambda: self.status is not None, f"{self.worker_id}: session over")
        assert self.status is not None
        return self.status

    async def leave(self) -> None:
        """Ends the session in good order."""
        self._outgoing.put_nowait(None)
        await self.ended()
        await self.die()

    def mute(self) -> None:
        """Falls silent but stays connected."""
        for task in self._tasks[1:]:
            task.cancel()

    async def die(self) -> None:
        """Is gone, as a killed process is."""
        for task in self._tasks:
            task.cancel()
        if self._call is not None:
            self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def _frames(self) -> AsyncIterator[session_pb2.WorkerFrame]:
        while (frame := await self._outgoing.get()) is not None:
            yield frame

    async def _read(self) -> session_pb2.RouterFrame:
        assert self._call is not None
        frame = await self._call.read()
        if frame is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await self._call.code(),
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                details=await self._call.details(),
            )
        self._acknowledged = frame.number
        self.frames.append(frame)
        return frame

    async def _receive(self) -> None:
        assert self._call is not None
        with contextlib.suppress(grpc.aio.AioRpcError):
            while True:
                self._take(await self._read())
        self.status = await self._call.code()
        self.details = await self._call.details()

    def _take(self, frame: session_pb2.RouterFrame) -> None:
        self.submits.extend(frame.submits)
        self.pieces.extend(frame.prompt_pieces)
        self.cancels.extend(frame.cancels)
        if frame.HasField("drain"):
            self.drain = frame.drain
        if frame.HasField("demand"):
            self.demand = frame.demand
        if self._script is not None:
            for submit in frame.submits:
                self.say(*self._script(submit))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self.say()
