"""Workers without an engine on real sessions: one frame a step. `python -m bench.relay.session_worker`.

Each frame says what a real worker's says at that point: news of sequences, kept together where that is asked
for, as columns where they are ids alone, load and progress with them every STATE_S or alone every QUIET_S,
credit with what changes it, and what was done for whom every SERVED_S. All workers live in one process; each
attaches to every router that is named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
import uvloop
from headrace.v1 import session_pb2, session_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc, types_pb2

from bench.relay.decoder import Text, options, ready, steps
from services.common.members import MeshSecret, new_nonce
from services.common.transport import Tls, channel

HEARTBEAT_S = 0.2
STATE_S = 0.05
QUIET_S = 0.1
SERVED_S = 0.1
MAX_TOKENS = 8192
BLOCKS = 16_384
_NUMERICS = b"n" * 32


class _Merge(NamedTuple):
    tokens: int
    wait_s: float


_AT_ONCE = _Merge(0, 0.0)


@dataclass(slots=True)
class _Running:
    """One request; the first index is that of its first token here."""

    attempt: int
    first: int
    made: int
    told: int
    tokens: int
    tag: bytes
    merge: _Merge


class Link:
    """One session of one worker."""

    def __init__(
        self, address: str, mesh: MeshSecret, hello: session_pb2.Hello, text: Text, step_s: float
    ) -> None:
        self._stub = session_pb2_grpc.SessionServiceStub(channel(address, Tls()))
        self._mesh = mesh
        self._hello = hello
        self._text = text
        self._step_s = step_s
        self._running: dict[int, _Running] = {}  # by slot
        self._kept: dict[_Merge, list[float]] = {}  # steps, and since when
        self._served: dict[bytes, list[int]] = {}
        self._told_served: dict[bytes, list[int]] = {}
        self._columns = False
        self._booked = 0  # the last frame that submitted something
        self._credited = -1, -1  # sequences that ran, and the frame, that the last credit told counts from
        self._frames: asyncio.Queue[session_pb2.WorkerFrame] = asyncio.Queue()
        self._number = self._acknowledged = self._steps = 0
        self._said_s = self._state_s = self._served_s = 0.0

    async def open(self) -> asyncio.Task[None]:
        """Shakes hands; the task ends when the session does."""
        call = self._stub.Session(self._outgoing())
        nonce = new_nonce()
        hello = session_pb2.Hello(nonce=nonce)
        hello.MergeFrom(self._hello)
        self._say(session_pb2.WorkerFrame(hello=hello))
        challenge = await _read(call)
        mac = self._mesh.worker_proof(nonce, challenge.challenge.nonce, hello.incarnation)
        self._say(session_pb2.WorkerFrame(proof=session_pb2.Proof(mac=mac)))
        answer = await _read(call)
        self._acknowledged, self._columns = answer.number, answer.welcome.next_tokens
        state = session_pb2.WorkerFrame()
        self._tell_state(state)
        self._say(state)
        return asyncio.create_task(self._listen(call))

    def step(self) -> None:
        """One id more for every request of this session, in one frame where any of them has to be told."""
        now = time.monotonic()
        if not self._running and now - self._said_s < HEARTBEAT_S:
            return
        self._steps += bool(self._running)
        frame = session_pb2.WorkerFrame()
        due = self._due(now)
        for slot, each in list(self._running.items()):
            each.made += 1
            if each.made - each.first == 1 or each.made == each.tokens or each.merge in due:
                self._tell(frame, slot, each)
        tells = bool(frame.updates) or frame.HasField("next_tokens")
        if max(frame.next_tokens.counts, default=1) == 1:
            frame.next_tokens.ClearField("counts")
        changed = (len(self._running), self._booked) != self._credited
        if changed or now - self._state_s >= (STATE_S if tells else QUIET_S):
            self._tell_state(frame)
            self._state_s = now
        elif not tells:
            return
        if now - self._served_s >= SERVED_S:
            self._tell_served(frame)
            self._served_s = now
        self._said_s = now
        self._say(frame)

    def _due(self, now: float) -> set[_Merge]:
        """Whose tokens must not wait for the next step."""
        due = {_AT_ONCE}
        for merge in {each.merge for each in self._running.values()} - due:
            kept = self._kept.setdefault(merge, [0, now])
            kept[0] += 1
            if kept[0] >= merge.tokens or now + self._step_s - kept[1] > merge.wait_s:
                due.add(merge)
                del self._kept[merge]
        return due

    def _tell(self, frame: session_pb2.WorkerFrame, slot: int, each: _Running) -> None:
        index, new = each.told, each.made - each.told
        ids = [self._text.at(place) for place in range(index, each.made)]
        each.told = each.made
        self._served[each.tag][1] += new
        if each.made < each.tokens and self._columns:
            columns = frame.next_tokens
            columns.slots.append(slot)
            columns.attempts.append(each.attempt)
            columns.indices.append(index)
            columns.token_ids.extend(ids)
            columns.counts.append(new)
            return
        update = frame.updates.add(slot=slot, attempt=each.attempt, first_index=index, token_ids=ids)
        if each.made == each.tokens:
            update.end.reason = session_pb2.END_REASON_LENGTH
            del self._running[slot]

    def _tell_served(self, frame: session_pb2.WorkerFrame) -> None:
        for tag, (prompt, output) in self._served.items():
            if self._told_served.get(tag) != [prompt, output]:
                self._told_served[tag] = [prompt, output]
                frame.tenant_service.add(tenant_tag=tag, prompt_tokens=prompt, output_tokens=output)

    def _tell_state(self, frame: session_pb2.WorkerFrame) -> None:
        running = len(self._running)
        load = frame.load
        load.running = load.batch_size = load.step_tokens = running
        load.kv_blocks_free, load.step_us = BLOCKS, 10_000
        frame.progress.steps, frame.progress.has_work = self._steps, running > 0
        if self._credited != (running, self._booked):
            self._credited = running, self._booked
            credit = frame.credit
            credit.sequences = max(0, self._hello.kv_spec.max_sequences - running)
            credit.prefill_tokens, credit.kv_blocks = 1 << 20, BLOCKS

    def _say(self, frame: session_pb2.WorkerFrame) -> None:
        self._number += 1
        frame.number, frame.acknowledged_command = self._number, self._acknowledged
        self._frames.put_nowait(frame)

    async def _outgoing(self) -> AsyncIterator[session_pb2.WorkerFrame]:
        while True:
            yield await self._frames.get()

    async def _listen(
        self, call: grpc.aio.StreamStreamCall[session_pb2.WorkerFrame, session_pb2.RouterFrame]
    ) -> None:
        try:
            while True:
                self._obey(await _read(call))
        finally:
            call.cancel()

    def _obey(self, frame: session_pb2.RouterFrame) -> None:
        self._acknowledged = frame.number
        for submit in frame.submits:
            self._booked = frame.number
            index, merge = submit.next_index, _Merge(submit.merge.tokens, submit.merge.wait_ms / 1000)
            self._running[submit.slot] = _Running(
                submit.attempt, index, index, index, submit.max_tokens, submit.tenant_tag, merge
            )
            self._served.setdefault(submit.tenant_tag, [0, 0])[0] += submit.prompt_tokens
        for cancel in frame.cancels:
            if self._running.pop(cancel.slot, None) is not None:
                end = session_pb2.SequenceEnd(reason=session_pb2.END_REASON_CANCELLED)
                update = session_pb2.SequenceUpdate(slot=cancel.slot, attempt=cancel.attempt, end=end)
                self._say(session_pb2.WorkerFrame(updates=[update]))


async def _read(
    call: grpc.aio.StreamStreamCall[session_pb2.WorkerFrame, session_pb2.RouterFrame],
) -> session_pb2.RouterFrame:
    frame = await call.read()
    if frame is grpc.aio.EOF:
        raise ConnectionError(f"the router ended the session: {await call.details()}")
    assert isinstance(frame, session_pb2.RouterFrame)
    return frame


async def _description(address: str, mesh: MeshSecret) -> tokenizer_pb2.TokenizerDescription:
    async with channel(address, Tls()) as connection:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(connection)
        parts = stub.GetTokenizer(
            tokenizer_pb2.GetTokenizerRequest(), timeout=30.0, metadata=mesh.metadata("tokenizer")
        )
        try:
            async for part in parts:
                if part.HasField("description"):
                    return part.description
        finally:
            parts.cancel()
    raise ConnectionError("the tokenizer service described nothing")


def _hello(number: int, slots: int, known: tokenizer_pb2.TokenizerDescription) -> session_pb2.Hello:
    digests = types_pb2.ModelDigests()
    digests.CopyFrom(known.digests)
    digests.weights, digests.numerics = b"w" * 32, _NUMERICS
    return session_pb2.Hello(
        protocol_version=1,
        worker_id=f"worker-{number}",
        incarnation=number + 1,
        model=known.model,
        digests=digests,
        engine="scripted",
        device="none",
        merges=True,
        kv_spec=session_pb2.KvSpec(
            block_tokens=64, blocks=BLOCKS, max_sequences=slots, max_tokens=MAX_TOKENS
        ),
    )


async def _work(
    routers: Sequence[str], tokenizer: str, secret: Path, text: Text, workers: int, slots: int, step_s: float
) -> None:
    mesh = MeshSecret.read(secret)
    known = await _description(tokenizer, mesh)
    links = [
        [Link(address, mesh, _hello(number, slots, known), text, step_s) for address in routers]
        for number in range(workers)
    ]
    listening = [await link.open() for worker in links for link in worker]
    stepping = []
    for worker in links:
        await asyncio.sleep(step_s / workers)  # steps of different workers are not in time
        stepping.append(asyncio.create_task(steps(step_s, lambda mine=worker: _step(mine))))  # type: ignore[misc]
    ready(0)
    await asyncio.gather(*listening, *stepping)


def _step(links: Sequence[Link]) -> None:
    for link in links:
        link.step()


def main() -> None:
    """Work until ended."""
    flags = options("Workers without an engine on real sessions.")
    flags.add_argument("--routers", nargs="+", required=True, help="addresses of their mesh ports")
    flags.add_argument("--tokenizer", required=True, help="address")
    flags.add_argument("--secret", type=Path, required=True, help="file of the mesh secret")
    flags.add_argument("--workers", type=int, default=1)
    flags.add_argument("--slots", type=int, default=256)
    given = flags.parse_args()
    text = Text.read(given.ids)
    uvloop.run(
        _work(given.routers, given.tokenizer, given.secret, text, given.workers, given.slots, given.step_s)
    )


if __name__ == "__main__":
    main()
