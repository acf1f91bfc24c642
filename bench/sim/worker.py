"""One worker in virtual time: production scheduler and credit book around a device without a model.

The engine's loop (services/worker/engine/loop.py) turns as there: receive, plan, launch, settle, report. The
host's work takes no time, and no step is launched ahead of its predecessor's end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from bench.sim import leap
from bench.sim.device import END, WORD, Device, calibration, learned
from bench.sim.frame import NO_BLOCKS, Blocks, Ended, Frame
from bench.sim.kernel import Kernel
from bench.sim.request import DIGEST_BYTES, NUMERICS, SimRequest
from services.worker.scheduler.events import Events, Finished, Served
from services.worker.scheduler.intake import ModelFacts
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import NO_IDS, FinishReason, LatencyClass, Request, Sampling
from services.worker.scheduler.scheduler import Scheduler
from services.worker.scheduler.step import Sampled, Step
from services.worker.session.books import Books, Grant
from services.worker.session.credits import Demand, Room

HEARTBEAT_S = 0.2  # an idle worker says so often what it grants; here only while that still changes
LOOK_AGAIN_S = 0.005  # as the engine's loop, when work is there that may not run now
ACKNOWLEDGED_S = 0.1  # a router acknowledges frames at least so often
COUNTED_S = 0.05  # tokens are counted out to routers so often, and whenever something else is to be told
_NOTHING = Served(0, 0)
_NONE_MADE: Counter[int] = Counter()
_NO_ROOM = Grant(Room(), Room())


class Submit(NamedTuple):
    """A router gives a request."""

    handle: int  # of this attempt
    session: int
    command: int  # of that session
    acknowledged_frame: int
    request: SimRequest
    latency_class: LatencyClass
    expected_output: int | None
    delivered: int = 0  # output tokens that the client has


class Cancel(NamedTuple):
    """A router takes a request back."""

    session: int
    command: int
    acknowledged_frame: int
    handle: int


class Listener(Protocol):
    """A router as its workers see it."""

    def post(self, worker: int, frame: Frame) -> None:
        """A frame leaves for the router."""

    def demand(self) -> tuple[Demand, Demand]:
        """What waits there: in all, and of foreground work."""


@dataclass(slots=True)
class _Session:
    router: Listener
    sent: int = 0
    command: int = 0  # the last one obeyed
    reported: int = 0  # the last one that a report covers
    unacknowledged: deque[tuple[int, float]] = field(default_factory=deque)
    first: list[int] = field(default_factory=list)
    made: Counter[int] = field(default_factory=Counter)
    ended: list[Ended] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    served: dict[bytes, Served] = field(default_factory=dict)
    counted_s: float = 0.0  # when it was last told of made and served tokens
    granted: Grant = _NO_ROOM  # by the last frame


class SimWorker:
    """A worker with a session to each router.

    Args:
        credited: whether routers need credit; those that bind on arrival do not ask.
    """

    def __init__(
        self,
        kernel: Kernel,
        index: int,
        name: str,
        routers: list[Listener],
        *,
        credited: bool = True,
        settings: SchedulerSettings | None = None,
        max_seqs: int = 256,
        leaps: bool = True,
    ) -> None:
        self.index, self.name, self.key = index, name, str(index)
        self.device = Device(calibration(name), max_seqs)
        facts = ModelFacts(self.device.calibration.vocab_size, (END,), NUMERICS)
        self.scheduler = Scheduler(
            self.device.spec,
            settings or SchedulerSettings(),
            facts,
            self.device.capabilities,
            prior=learned(name),
        )
        self.books = Books() if credited else None
        self.cached: set[bytes] = set()  # digests of reusable blocks, as routers keep them
        self.busy_s = 0.0
        self.steps = 0
        self.dead = False
        self._kernel = kernel
        self._sessions = [_Session(router) for router in routers]
        self._owners: dict[int, int] = {}  # handle -> session
        self._inbox: list[tuple[int, Submit | Cancel]] = []  # with the engine's number
        self._commands = 0
        self._obeyed = 0
        self._busy = False
        self._resting: list[Grant] = []  # what the last heartbeat granted
        self._leaps = leaps
        self._leap: leap.Leap | None = None
        self._leap_steps = 0
        self._turns = 0  # a number for each event of its own: older ones are void
        if self.books is not None:
            for session in range(len(routers)):
                self.books.open(session)
            self._credit()

    def receive(self, command: Submit | Cancel) -> None:
        """A command arrives; the engine takes it when the step ends that runs."""
        if self.dead:
            return
        self._commands += 1
        if isinstance(command, Submit) and not self._admitted(command):
            return
        self._inbox.append((self._commands, command))
        if self._leap is not None:
            self._cut(self._leap)
        elif not self._busy:
            self._turn()

    def die(self) -> None:
        """Nothing comes from it any more."""
        self.dead = True
        self._turns += 1

    def hello(self) -> None:
        """Tell all routers what it is and has."""
        self._report()

    def delivered(self, handle: int) -> int:
        """Output tokens of an attempt that have left it by now."""
        sequence = self.scheduler._sequences.get(handle)
        if sequence is None:
            return 0
        leaping = self._leap
        steps = 0 if leaping is None else leaping.steps_until(self._kernel.now) - 1
        return sequence.outputs + steps

    def _admitted(self, command: Submit) -> bool:
        if self.books is None:
            return True
        self._acknowledge(command.session, command.acknowledged_frame)
        foreground = command.latency_class is not LatencyClass.BATCH
        room, number = self._cost(command), command.handle
        if self.books.admit(command.session, number, room, foreground=foreground):
            self.books.submitted(number, self._commands)
            return True
        session = self._sessions[command.session]
        session.returned.append(command.handle)
        session.command = session.reported = command.command
        self._tell(command.session, NO_BLOCKS)
        return False

    def _cost(self, command: Submit) -> Room:
        request, block = command.request, self.device.spec.block_size
        tokens = request.prompt_tokens + command.delivered - self.hits(request) * block
        length = request.prompt_tokens + max(command.expected_output or 0, command.delivered + 1)
        return Room(tokens, 1, -(-length // block))

    def hits(self, request: SimRequest) -> int:
        """Leading blocks of its prompt that are here."""
        cached = self.cached
        for count, name in enumerate(request.names):
            if name not in cached:
                return count
        return len(request.names)

    def _acknowledge(self, session: int, frame: int) -> None:
        assert self.books is not None
        self.books.acknowledged(session, frame)
        waiting = self._sessions[session].unacknowledged
        while waiting and waiting[0][0] <= frame:
            waiting.popleft()

    def _cut(self, leaping: leap.Leap) -> None:
        """The step that runs now becomes the leap's last one."""
        steps = leaping.steps_until(self._kernel.now)
        if steps < self._leap_steps:
            self._leap_steps = steps
            self._end_at(leaping.end_of(steps), self._land)

    def _end_at(self, when_s: float, act: Callable[[], None]) -> None:
        self._turns += 1
        turn = self._turns

        def due() -> None:
            if turn == self._turns:
                act()

        self._kernel.at(when_s, due)

    def _turn(self) -> None:
        now = self._kernel.now
        for number, command in self._inbox:
            self._obeyed = number
            self._obey(command, now)
        self._inbox.clear()
        leaping = leap.plan(self.scheduler, self.device, now) if self._leaps else None
        if leaping is not None:
            self._busy, self._leap, self._leap_steps = True, leaping, leaping.steps
            self._end_at(leaping.end_of(leaping.steps), self._land)
            return
        step = self.scheduler.plan(now)
        if step is not None:
            self._launch(step)
            return
        self._busy = False
        self._report()
        if self.scheduler.has_work:
            self._end_at(now + LOOK_AGAIN_S, self._turn)
        elif len(self._sessions) > 1:
            self._rest(now)

    def _rest(self, now: float) -> None:
        """Idle: beats until what it grants to several routers stands still."""
        granted = [session.granted for session in self._sessions]
        if granted != self._resting:
            self._end_at(now + HEARTBEAT_S, self._turn)
        self._resting = granted

    def _launch(self, step: Step) -> None:
        sampled, seconds = self.device.launch(step)
        self._busy = True
        self._end_at(self._kernel.now + seconds, lambda: self._settle(step, sampled, seconds))

    def _settle(self, step: Step, sampled: Sampled, seconds: float) -> None:
        self.busy_s += seconds
        self.steps += 1
        self.scheduler.commit(step, sampled, self._kernel.now, seconds)
        self._report()
        self._turn()

    def _land(self) -> None:
        leaping, self._leap = self._leap, None
        assert leaping is not None
        leap.settle(self.scheduler, leaping, self._leap_steps)
        for sequence in leaping.sequences:
            self._sessions[self._owners[sequence.handle]].made[sequence.handle] += self._leap_steps
        self.busy_s += self._kernel.now - leaping.began_s
        self.steps += self._leap_steps
        self._report()
        self._turn()

    def _obey(self, command: Submit | Cancel, now: float) -> None:
        self._sessions[command.session].command = command.command
        if isinstance(command, Cancel):
            self.scheduler.abort(command.handle, now)
            return
        self._owners[command.handle] = command.session
        self.scheduler.add(_to_request(command), now)

    def _report(self) -> None:
        events = self.scheduler.take_events()
        for session in self._sessions:
            session.reported = session.command
        blocks = self._blocks(events)
        self._sort(events)
        self._credit()
        for index in range(len(self._sessions)):
            self._tell(index, blocks)

    def _credit(self) -> None:
        if self.books is None:
            return
        if len(self._sessions) > 1:
            for index, session in enumerate(self._sessions):
                self.books.demand(index, *session.router.demand())
        idle = not self.scheduler.has_work
        self.books.report(self.scheduler.credits(), self._obeyed, idle=idle)

    def _blocks(self, events: Events) -> Blocks:
        kv = events.kv
        if not kv.digests:
            return NO_BLOCKS
        stored, digests = kv.stored.tolist(), [digest[:DIGEST_BYTES] for digest in kv.digests]
        for there, digest in zip(stored, digests, strict=True):
            (self.cached.add if there else self.cached.discard)(digest)
        return Blocks(kv.first_number, stored, digests)

    def _sort(self, events: Events) -> None:
        outputs = events.outputs
        for handle in outputs.handles.tolist():
            self._sessions[self._owners[handle]].made[handle] += 1
        for row in np.flatnonzero(outputs.indices == 0).tolist():
            handle = int(outputs.handles[row])
            self._sessions[self._owners[handle]].first.append(handle)
        for tag, served in events.served.items():
            for session in self._sessions:
                before = session.served.get(tag, _NOTHING)
                session.served[tag] = Served(
                    before.prompt_tokens + served.prompt_tokens, before.output_tokens + served.output_tokens
                )
        for finished in events.terminals.finished:
            self._end(finished)
        assert not events.terminals.rejected, events.terminals.rejected

    def _end(self, finished: Finished) -> None:
        session = self._sessions[self._owners.pop(finished.handle)]
        if finished.reason is not FinishReason.CANCELLED:
            done = finished.reason is not FinishReason.DEADLINE
            session.ended.append(Ended(finished.handle, finished.usage, done))

    def _tell(self, index: int, blocks: Blocks) -> None:
        session, now = self._sessions[index], self._kernel.now
        session.sent += 1
        counts = session.first or session.ended or now >= session.counted_s + COUNTED_S
        frame = Frame(
            number=session.sent,
            acknowledged_command=session.reported,
            load=self.scheduler.load(),
            credit=self._grant(index, session, now),
            step_model=self.scheduler.model.state(),
            first=session.first,
            made=session.made if counts else _NONE_MADE,
            ended=session.ended,
            returned=session.returned,
            blocks=blocks,
            served=session.served if counts else {},
        )
        session.first, session.ended, session.returned = [], [], []
        if counts:
            session.made, session.served, session.counted_s = Counter(), {}, now
        session.router.post(self.index, frame)

    def _grant(self, index: int, session: _Session, now: float) -> Grant:
        if self.books is None:
            return _NO_ROOM
        heard, waiting = 0, session.unacknowledged
        while waiting and waiting[0][1] <= now - ACKNOWLEDGED_S:
            heard = waiting.popleft()[0]
        if heard:
            self.books.acknowledged(index, heard)
        waiting.append((session.sent, now))
        session.granted = self.books.grant(index, session.sent)
        return session.granted


def tag_of(tenant: str, latency_class: LatencyClass) -> bytes:
    """What a worker counts served tokens under."""
    return b"%d%s" % (latency_class, tenant.encode())


def _to_request(command: Submit) -> Request:
    asked = command.request
    return Request(
        handle=command.handle,
        prompt=asked.prompt(),
        delivered=np.full(command.delivered, WORD, np.int32) if command.delivered else NO_IDS,
        max_tokens=asked.max_tokens,
        arrival_s=asked.arrival_s,
        sampling=Sampling(seed=asked.output_tokens),
        latency_class=command.latency_class,
        deadline_s=None if asked.deadline_after_s is None else asked.arrival_s + asked.deadline_after_s,
        ttft_target_s=asked.ttft_target_s,
        tpot_target_s=asked.tpot_target_s,
        kv_key=asked.kv_key,
        expected_output_tokens=command.expected_output,
        tenant=tag_of(asked.tenant, command.latency_class),
        session=command.session,
    )
