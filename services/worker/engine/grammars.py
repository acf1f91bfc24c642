"""All grammars of an engine: compiled and advanced in threads, so that none holds up a step.

begin ──▶ compile ──▶ READY ──▶ a step chooses a token ──▶ advance ──▶ READY … COMPLETE or FAILED

llguidance gives up an explosive grammar by itself after about a second of work; its request fails then, or at
the deadline, and the thread is free again when the work ends. Steps go on without that row meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from services.worker.engine.errors import GrammarError
from services.worker.scheduler.request import Request
from services.worker.scheduler.step import Constrained, Masks

if TYPE_CHECKING:
    from services.worker.engine.grammar import Constraint, Vocabulary

DEADLINE_S = 1.0  # of one compilation and of one mask, from when it begins
MOMENT_S = 0.005  # what a step waits for masks that were asked for just before it; most take 50 µs
_COMPILERS = 2
_ADVANCERS = 2  # apart, so that explosive grammars hold up new ones at the most
_TOO_SLOW = f"the grammar takes more than {DEADLINE_S:g} s: simplify it"
_REPLAY_TOKENS = 32  # llguidance keeps Python's lock while it takes tokens


class Outcome(Enum):
    """What became of a grammar's next mask."""

    READY = auto()
    COMPLETE = auto()  # nothing may follow
    FAILED = auto()


class Verdict(NamedTuple):
    """News of one grammar; `message` says why it failed."""

    handle: int
    outcome: Outcome
    message: str = ""


class _Work:
    """One compilation or one advance."""

    def __init__(self, task: Callable[[], Constraint | None]) -> None:
        self.future: Future[Constraint | None]
        self.began_s: float | None = None
        self._task = task

    def run(self) -> Constraint | None:
        self.began_s = time.monotonic()
        return self._task()

    def late(self, now: float) -> bool:
        return self.began_s is not None and now - self.began_s > DEADLINE_S


class Grammars:
    """Grammars by handle. Not thread-safe: the engine's loop has it."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        self._vocabulary = vocabulary
        self._constraints: dict[int, Constraint] = {}
        self._work: dict[int, _Work] = {}
        self._asked_s = 0.0
        self._compilers = ThreadPoolExecutor(_COMPILERS, "grammar-compiler")
        self._advancers = ThreadPoolExecutor(_ADVANCERS, "grammar-advancer")

    @property
    def imminent(self) -> bool:
        """Whether `verdicts` is worth waiting for."""
        return bool(self._work) and time.monotonic() < self._asked_s + MOMENT_S

    def begin(self, request: Request) -> None:
        """Compiles the grammar of a request and replays its delivered ids; a verdict follows."""
        self._ask(request.handle, self._compilers, lambda: self._compile(request))

    def advance(self, handle: int, token: int) -> None:
        """The next output id; a verdict follows unless the id ends the output or nobody has the handle."""
        constraint = self._constraints.get(handle)
        if constraint is not None and token >= 0 and token not in constraint.stops:
            self._ask(handle, self._advancers, lambda: _advance(constraint, token))

    def forget(self, handle: int) -> None:
        """The request has ended: no verdict comes any more. Unknown handles are ignored."""
        self._constraints.pop(handle, None)
        work = self._work.pop(handle, None)
        if work is not None:
            work.future.cancel()

    def verdicts(self) -> Iterator[Verdict]:
        """What is known by now, each once; waits a moment for what was asked for just before."""
        if not self._work:
            return
        left_s = self._asked_s + MOMENT_S - time.monotonic()
        wait([work.future for work in self._work.values()], timeout=max(0.0, left_s))
        now = time.monotonic()
        for handle, work in list(self._work.items()):
            if work.future.done() or work.late(now):
                del self._work[handle]
                yield self._verdict(handle, work)

    def masks(self, rows: Sequence[Constrained]) -> Masks:
        """The masks of rows whose last verdict is READY; there is at least one row."""
        bits = np.stack([self._constraints[each.handle].bits for each in rows])
        return Masks(np.array([each.row for each in rows], np.int32), bits)

    def close(self) -> None:
        """Begins nothing any more; work under way ends by itself."""
        for pool in (self._compilers, self._advancers):
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, handle: int, pool: ThreadPoolExecutor, task: Callable[[], Constraint | None]) -> None:
        work = _Work(task)
        work.future = pool.submit(work.run)
        self._work[handle] = work
        self._asked_s = time.monotonic()

    def _compile(self, request: Request) -> Constraint | None:
        assert self._vocabulary is not None, "the scheduler refuses grammars without the capability"
        constraint = self._vocabulary.constraint(request)
        delivered = request.delivered.tolist()
        for start in range(0, len(delivered), _REPLAY_TOKENS):
            constraint.take(delivered[start : start + _REPLAY_TOKENS])
        if not constraint.find_next():
            return None
        constraint.probe()
        return constraint

    def _verdict(self, handle: int, work: _Work) -> Verdict:
        if not work.future.done():
            return Verdict(handle, Outcome.FAILED, _TOO_SLOW)
        error = work.future.exception()
        if error is not None:
            return Verdict(handle, Outcome.FAILED, _sentence(error))
        constraint = work.future.result()
        if constraint is None:
            return Verdict(handle, Outcome.COMPLETE)
        self._constraints[handle] = constraint
        return Verdict(handle, Outcome.READY)


def _advance(constraint: Constraint, token: int) -> Constraint | None:
    constraint.take([token])
    return constraint if constraint.find_next() else None


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, GrammarError) else "the grammar cannot be processed"
