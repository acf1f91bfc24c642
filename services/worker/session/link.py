"""One router, for ever: dial, prove, carry frames both ways, wait a little, dial again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from headrace.v1 import session_pb2, session_pb2_grpc

from services.common import logs, transport
from services.common.members import MeshSecret
from services.worker.session.desk import Desk
from services.worker.session.faults import Misbehaved
from services.worker.session.handshake import FalseRouter, Handshake, Identity
from services.worker.session.job import Job
from services.worker.session.session import Session
from services.worker.session.tampering import FrameFaults

HANDSHAKE_S = 5.0
GOODBYE_S = 1.0
FIRST_WAIT_S = 0.01  # a broken connection: requests are moved after 100 ms
SOON_S = 1.0  # a session that ends within it was none: who is sent away dials more and more seldom
LONGEST_WAIT_S = 5.0
HOLDING_WAIT_S = 0.5  # while something is held for who is back
DEFAULT_GRACE_MS = 3000
DEFAULT_HOLD_MS = 5000
HONEST = FrameFaults()
Call: TypeAlias = grpc.aio.StreamStreamCall[session_pb2.WorkerFrame, session_pb2.RouterFrame]
log = logs.get(__name__)


class Refused(Exception):
    """The router ended the stream."""


class Link:
    """The way to one router process."""

    def __init__(
        self,
        address: str,
        tls: transport.Tls,
        mesh: MeshSecret,
        identity: Identity,
        desk: Desk,
        told: Callable[[Link, session_pb2.Welcome | None], None],
        faults: FrameFaults = HONEST,
    ) -> None:
        self.address = address
        self.router_id = ""
        self.session: Session | None = None
        self.retired = asyncio.Event()
        self._tls = tls
        self._mesh = mesh
        self._identity = identity
        self._desk = desk
        self._faults = faults
        self._told = told  # of each Welcome, and with None of each end
        self._held: dict[int, Job] = {}  # by handle
        self._grace: asyncio.TimerHandle | None = None
        self._trouble = ""

    async def run(self) -> None:
        """Attaches again and again until retired."""
        channel = transport.channel(self.address, self._tls)
        failures = 0
        try:
            while not self.retired.is_set():
                began_s = time.monotonic()
                lasted = await self._attempt(channel) and time.monotonic() - began_s > SOON_S
                failures = 0 if lasted else failures + 1
                await self._pause(failures)
        finally:
            self._expire()
            await channel.close()

    def leave(self) -> None:
        """Ends the session once its router knows all, and dials no more."""
        self.retired.set()
        if self.session is not None:
            self.session.leaving = True
            self.session.news.set()

    async def _attempt(self, channel: grpc.aio.Channel) -> bool:
        """One session; returns whether it was a good one. Every failure is contained here."""
        stub = session_pb2_grpc.SessionServiceStub(channel)
        call: Call = stub.Session()
        handshake = Handshake(self._identity, self._mesh)
        opened = False
        try:
            welcome = await self._shake(call, handshake)
            opened = True
            await self._serve(call, welcome)
            log.info("session_ended", router=self.address)
        except grpc.aio.AioRpcError as error:
            self._failed("lost" if opened else _kind(error), f"{error.code().name}: {error.details()}")
        except (FalseRouter, Refused, TimeoutError) as error:
            kind = "false_router" if isinstance(error, FalseRouter) else "lost" if opened else "refused"
            self._failed(kind, str(error) or "no answer in time")
        except Misbehaved as error:
            opened = False
            self._failed("misbehaved", str(error))
        except Exception as error:
            opened = False
            self._desk.metrics.session_failures.labels("internal").inc()
            log.error("session_failed", router=self.address, exc_info=error)
        finally:
            transport.end(call)
        return opened

    async def _shake(self, call: Call, handshake: Handshake) -> session_pb2.Welcome:
        async with asyncio.timeout(HANDSHAKE_S):
            await call.write(handshake.hello(self._held.values()))
            await call.write(handshake.prove(await _read(call)))
            return handshake.welcome(await _read(call))

    async def _serve(self, call: Call, welcome: session_pb2.Welcome) -> None:
        session = Session(self._desk, welcome, time.monotonic())
        self._stop_grace()
        try:
            self._begin(session, welcome)
            await self._carry(call, session)
        finally:
            self.session = None
            self._held = session.end()
            self._told(self, None)
            grace_s = (welcome.resume_grace_ms or DEFAULT_GRACE_MS) / 1000
            grace_s = max(grace_s, (welcome.orphan_hold_ms or DEFAULT_HOLD_MS) / 1000)
            self._grace = asyncio.get_running_loop().call_later(grace_s, self._expire)

    def _begin(self, session: Session, welcome: session_pb2.Welcome) -> None:
        held, self._held = self._held, {}
        session.begin(welcome, held, time.monotonic())
        self.session, self.router_id, self._trouble = session, welcome.router_id, ""
        log.info(
            "session_open",
            router=self.address,
            router_id=welcome.router_id,
            session=welcome.session_id,
            resumed=len(welcome.resume),
        )
        self._told(self, welcome)

    async def _carry(self, call: Call, session: Session) -> None:
        """Reads and writes until either ends; a goodbye lets the router end its side."""
        reader = asyncio.create_task(_receive(call, session))
        writer = asyncio.create_task(_send(call, session, self._faults))
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and writer.exception() is None:
                await asyncio.wait((reader,), timeout=GOODBYE_S)
                return
        finally:
            for task in (reader, writer):
                task.cancel()
            outcomes = await asyncio.gather(reader, writer, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _pause(self, failures: int) -> None:
        longest_s = HOLDING_WAIT_S if self._held else LONGEST_WAIT_S
        wait_s = min(longest_s, FIRST_WAIT_S * 2**failures)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.retired.wait(), wait_s * random.uniform(0.5, 1.0))

    def _failed(self, kind: str, why: str) -> None:
        """Counts every failure, and logs one that says something new."""
        self._desk.metrics.session_failures.labels(kind).inc()
        if why != self._trouble:
            self._trouble = why
            log.warning("session_failed", router=self.address, kind=kind, why=why)

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _expire(self) -> None:
        """The router did not come back for its requests."""
        self._stop_grace()
        for job in self._held.values():
            self._desk.abandon(job)
        self._held = {}


async def _receive(call: Call, session: Session) -> None:
    while True:
        session.handle(await _read(call), time.monotonic())


async def _send(call: Call, session: Session, faults: FrameFaults) -> None:
    """Writes what there is, one frame at a time, until a leaving session has nothing left to say."""
    while not (session.leaving and session.settled):
        await session.news.wait()
        frame = session.take()
        if frame is not None and (tampered := faults.tamper(frame)) is not None:
            await call.write(tampered)
    await call.done_writing()


async def _read(call: Call) -> session_pb2.RouterFrame:
    frame: Any = await call.read()
    if frame is grpc.aio.EOF:
        raise Refused("the router ended the session")
    if frame is None:  # what gRPC makes of bytes that are no message
        raise Misbehaved("what came is no frame")
    read: session_pb2.RouterFrame = frame
    return read


def _kind(error: grpc.aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return "unauthenticated"
    return "unreachable" if error.code() is grpc.StatusCode.UNAVAILABLE else "refused"
