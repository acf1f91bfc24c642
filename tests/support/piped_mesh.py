"""A router and its workers without a network: the production halves of sessions, joined by wires of ours.

    mesh = PipedMesh("good", "mad")
    flight = mesh.launch(pool="good")
    mesh.turn()         # every frame travels, every engine makes a step

Frames travel as bytes through one wire each way, which a test may replace. What breaks a session in
production breaks it here: a frame that cannot be read, an error of either half. Time passes by STEP_S a turn.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Protocol
from unittest import mock

from google.protobuf.message import DecodeError
from headrace.v1 import session_pb2
from prometheus_client import CollectorRegistry

from services.common import errors
from services.router import dispatcher
from services.router.continuity.settings import FailoverSettings
from services.router.dispatcher import Dispatcher
from services.router.metrics import RouterMetrics
from services.router.relay.flight import Flight
from services.router.relay.outlet import Flush, Outlet, Patience
from services.router.relay.text import TextReader
from services.router.sessions.session import Session as RouterHalf
from services.router.sessions.workers import Workers
from services.router.settings import LimitSettings, RouterSettings
from services.worker.metrics import WorkerMetrics
from services.worker.scheduler.request import FinishReason
from services.worker.session.desk import Desk
from services.worker.session.faults import Misbehaved
from services.worker.session.held import tell_held
from services.worker.session.job import Job
from services.worker.session.session import Session as WorkerHalf
from tests.support.flights import TABLE, order
from tests.support.session_engine import SPEC, RecordingEngine, finish

STEP_S = 0.05
SHAKEN = 2
"""Frames of a handshake, each way."""
MODEL = "m"


class Wire(Protocol):
    """One direction of a session."""

    def carry(self, frame: bytes) -> list[bytes]:
        """What arrives in the place of a frame."""


class GoodWire:
    """Loses nothing."""

    def carry(self, frame: bytes) -> list[bytes]:
        return [frame]


def token_of(prompt: Sequence[int], index: int) -> int:
    """What the model says: an ordinary id that depends on prompt and index."""
    return 10 + (sum(prompt) * 31 + index * 17) % 400


def output_of(prompt: Sequence[int], count: int) -> list[int]:
    """The first `count` ids after a prompt."""
    return [token_of(prompt, index) for index in range(count)]


class TalkingEngine(RecordingEngine):
    """Makes one token a step for each request."""

    def __init__(self) -> None:
        super().__init__()
        self._over: set[int] = set()

    @property
    def alive(self) -> list[int]:
        """Handles that run."""
        return [handle for handle in self.requests if handle not in self._over]

    def step(self, desk: Desk, now: float) -> None:
        """One step of all that runs; what was aborted ends."""
        aborted = {handle for handle in self.alive if handle in self.aborted}
        rest = [handle for handle in self.alive if handle not in aborted]
        tokens = {each: [token_of(self.requests[each].prompt.tolist(), self.made[each])] for each in rest}
        whole = [each for each in rest if self.made[each] + 1 >= self.requests[each].max_tokens]
        ends = [finish(each, FinishReason.CANCELLED) for each in aborted] + [finish(each) for each in whole]
        self._over.update(aborted, whole)
        desk.report(self.report(tokens, finished=ends, running=len(self.alive)), now)


class PipedWorker:
    """A worker's half, and the router's half of its session while there is one."""

    def __init__(self, mesh: PipedMesh, worker_id: str) -> None:
        self.worker_id = worker_id
        self.engine = TalkingEngine()
        self.registry = CollectorRegistry()
        self.desk = Desk(self.engine, WorkerMetrics(self.registry), lambda grace_s: None)
        self.up: Wire = GoodWire()
        self.down: Wire = GoodWire()
        self.theirs: RouterHalf | None = None
        self.ours: WorkerHalf | None = None
        self.broken: list[BaseException] = []
        """Why its sessions ended, the oldest first."""
        self._mesh = mesh
        self._held: dict[int, Job] = {}
        self.desk.report(self.engine.report(), mesh.now)

    def attach(self) -> None:
        """Opens a session, hands already shaken."""
        mesh = self._mesh
        self.theirs = RouterHalf(
            self._hello(),
            f"session of {self.worker_id}",
            mesh.settings.session,
            mesh.dispatcher,
            mesh.metrics,
            frames_received=SHAKEN,
            frames_sent=SHAKEN,
            now=mesh.now,
        )
        mesh.dispatcher.join(self.theirs)
        welcome = session_pb2.Welcome(
            router_id="router",
            session_id=self.theirs.session_id,
            resume=self.theirs.resumed,
            next_tokens=mesh.next_tokens,
            token_counts=mesh.next_tokens,
        )
        self.ours = WorkerHalf(self.desk, welcome, mesh.now)
        held, self._held = self._held, {}
        self.ours.begin(welcome, held, mesh.now)

    def detach(self) -> None:
        """Ends the session, if there is one: the worker keeps what it has for another."""
        theirs, ours, self.theirs, self.ours = self.theirs, self.ours, None, None
        if theirs is not None:
            theirs.close()
            self._mesh.dispatcher.part(theirs)
        if ours is not None:
            self._held = ours.end()

    def turn(self) -> None:
        """Commands go down, the engine makes a step, news go up."""
        self._guarded(self._commands)
        self.engine.step(self.desk, self._mesh.now)
        self._guarded(self._news)

    def _guarded(self, part: object) -> None:
        """What ends a session in production ends it here; anything else fails the test."""
        assert callable(part)
        try:
            part()
        except (DecodeError, Misbehaved, errors.HeadraceError) as error:
            self.broken.append(error)
            self.detach()

    def _commands(self) -> None:
        while self.theirs is not None and (frame := self.theirs.outbox.take()) is not None:
            for arrived in self.down.carry(frame.SerializeToString()):
                assert self.ours is not None
                self.ours.handle(session_pb2.RouterFrame.FromString(arrived), self._mesh.now)

    def _news(self) -> None:
        while self.ours is not None and (frame := self.ours.take()) is not None:
            for arrived in self.up.carry(frame.SerializeToString()):
                self.tell(session_pb2.WorkerFrame.FromString(arrived))

    def tell(self, frame: session_pb2.WorkerFrame) -> None:
        """Hands the router a frame, as its session's reader does."""
        assert self.theirs is not None
        self.theirs.handle(frame, self._mesh.now)
        if self.theirs.closed:
            raise self.theirs.close_error or errors.Unavailable("closed")

    def _hello(self) -> session_pb2.Hello:
        spec = session_pb2.KvSpec(
            block_tokens=SPEC.block_size,
            blocks=SPEC.num_blocks,
            max_sequences=SPEC.max_seqs,
            max_tokens=SPEC.max_len,
        )
        hello = session_pb2.Hello(
            worker_id=self.worker_id,
            incarnation=int.from_bytes(self.worker_id.encode()[:8]),
            model=MODEL,
            kv_spec=spec,
            capabilities=["prefix_cache"],
            labels={"pool": self.worker_id},
        )
        tell_held(hello, self._held.values())
        return hello


class PipedMesh:
    """One router and these workers. Needs a running event loop, and `time_is_ours` around it."""

    def __init__(
        self, *worker_ids: str, resumes: int = 2, return_s: float = 0.25, next_tokens: bool = True
    ) -> None:
        self.now = 1000.0
        self.next_tokens = next_tokens
        self.settings = RouterSettings(
            limits=LimitSettings(resumes=resumes), failover=FailoverSettings(return_s=return_s)
        )
        self.registry = CollectorRegistry()
        self.metrics = RouterMetrics(self.registry)
        self.flights: list[Flight] = []
        self.dispatcher = Dispatcher(self.settings, Workers(), self.metrics)
        self.workers = {each: PipedWorker(self, each) for each in worker_ids}
        for worker in self.workers.values():
            worker.attach()

    @contextmanager
    def time_is_ours(self) -> Iterator[None]:
        """The dispatcher's clock is `now` for the time of the block."""
        with mock.patch.object(dispatcher, "time", SimpleNamespace(monotonic=lambda: self.now)):
            yield

    def launch(self, prompt: Sequence[int], *, max_tokens: int = 8, pool: str | None = None) -> Flight:
        """A request, for one pool alone if that is said."""
        labels = frozenset({("pool", pool)} if pool else ())
        number = len(self.flights) + 1
        made = order(
            number=number,
            request_id=f"r{number}",
            model=MODEL,
            prompt_ids=array("I", prompt),
            max_tokens=max_tokens,
            labels=labels,
            arrival_s=self.now,
        )
        flight = Flight(made, TextReader(TABLE, ()), Outlet(Flush(0.0, 1), Patience(1 << 30, 1e9)))
        self.flights.append(flight)
        self.dispatcher.launch(flight, on_start=lambda: None)
        return flight

    def turn(self, *, tick: bool = True) -> None:
        """Everything moves by one step."""
        self.now += STEP_S
        if tick:
            self.dispatcher.housekeeping.tick(self.now, 0.0)
        for worker in self.workers.values():
            worker.turn()

    def counted(self, kind: str) -> float:
        """Bad frames of a kind that the router counted."""
        return self.registry.get_sample_value("headrace_bad_frames_total", {"kind": kind}) or 0.0


def outcome(flight: Flight) -> str:
    """How a flight stands: "runs", "finished", or the reason of its error."""
    end = flight.outlet._end
    if end is None:
        return "runs"
    return end.reason if isinstance(end, errors.HeadraceError) else "finished"
