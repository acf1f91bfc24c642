"""A request that needs more than a router's share of a worker runs in the end, whatever the others send."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest

from services.router.policy import Cost, LatencyClass, PolicySettings, Scheduler
from services.worker.scheduler.events import Credits
from services.worker.scheduler.events import Room as Window
from services.worker.session.books import Books, Grant
from services.worker.session.credits import Demand, Room
from tests.support.policy_values import make_ticket, make_worker

BLOCKS, SLOTS, TOKENS = 100, 64, 100_000
SMALL, LARGE = 10, 70  # blocks: no share of two routers' is ever enough for the large one
TURN_S = 0.25
ARRIVES_S = 5.0
THE_LARGE_ONE = 0


class Running(NamedTuple):
    ends_s: float
    blocks: int


class Worker:
    """A worker's credit book before an engine that starts what comes first first, where it has the blocks."""

    def __init__(self, routers: int) -> None:
        self.books = Books()
        self.waiting: deque[tuple[int, int]] = deque()
        self.running: dict[int, Running] = {}
        self._frame = 0
        self._command = 0
        for each in range(routers):
            self.books.open(each)

    def turn(self, now: float) -> list[int]:
        """Starts what it can; returns what has ended."""
        ended = [number for number, each in self.running.items() if each.ends_s <= now]
        for number in ended:
            del self.running[number]
        while self.waiting and self.waiting[0][1] <= self.free:
            number, blocks = self.waiting.popleft()
            self.running[number] = Running(now + 2.0 + 0.25 * (number % 7), blocks)
        room = Window(TOKENS, SLOTS - len(self.running), max(0, self.free - sum(b for _, b in self.waiting)))
        credits = Credits(
            room.prefill_tokens, room.slots, room.blocks, foreground=room, waiting_by_session={}
        )
        self.books.report(credits, self._command, idle=not (self.running or self.waiting))
        return ended

    @property
    def free(self) -> int:
        return BLOCKS - sum(each.blocks for each in self.running.values())

    def grant(self, session: int) -> Grant:
        """Credit of a session, whose router acknowledges at once."""
        self._frame += 1
        granted = self.books.grant(session, self._frame)
        self.books.acknowledged(session, self._frame)
        return granted

    def submit(self, session: int, number: int, cost: Cost) -> None:
        assert self.books.admit(session, number, Room(*cost), foreground=True)
        self._command += 1
        self.books.submitted(number, self._command)
        self.waiting.append((number, cost.kv_blocks))


def wait_of_the_large_one(
    policy: PolicySettings, routers: int, its_class: LatencyClass, until_s: float
) -> float | None:
    """How long the large request of the first router waits while small ones always wait at all of them."""
    schedulers = [Scheduler(policy) for _ in range(routers)]
    worker, now, number = Worker(routers), 0.0, 1
    owners: dict[int, Scheduler] = {}
    while now < until_s:
        now += TURN_S
        if now == ARRIVES_S:
            its = make_ticket(THE_LARGE_ONE, its_class, "large", prompt=64 * (LARGE - 1), arrival_s=now)
            schedulers[0].submit(its, now)
        for ended in worker.turn(now):
            owners.pop(ended).ended(ended)
        if THE_LARGE_ONE in worker.running:
            return now - ARRIVES_S
        for session, it in enumerate(schedulers):
            while len(it) < 10:
                it.submit(make_ticket(number, its_class, prompt=64 * (SMALL - 1), arrival_s=now), now)
                number += 1
            waiting = Demand(it.waiting("m").prefill_tokens, it.waiting("m").requests)
            worker.books.demand(session, waiting, waiting)
        for session, it in enumerate(schedulers):
            credit = Cost(*worker.grant(session).all)
            busy = len(worker.running) + len(worker.waiting)
            it.worker_changed(make_worker(credit=credit, sequences=busy, total_blocks=BLOCKS))
            while (assignment := it.next(now)) is not None:
                owners[assignment.ticket.number] = it
                worker.submit(session, assignment.ticket.number, assignment.cost)
                if assignment.ticket.number != THE_LARGE_ONE:
                    it.streamed(assignment.ticket.number, 1, now)
    return None


@pytest.mark.parametrize("routers", [1, 2, 4])
@pytest.mark.parametrize("its_class", [LatencyClass.INTERACTIVE, LatencyClass.STANDARD])
def test_a_request_larger_than_any_share_of_a_worker_begins_in_the_end(
    routers: int, its_class: LatencyClass
) -> None:
    """It waited twice until it would be overdue; what ran there ends before it begins."""
    assert wait_of_the_large_one(PolicySettings(clear_for_starving=False), routers, its_class, 120.0) is None
    waits_s = wait_of_the_large_one(PolicySettings(), routers, its_class, 120.0)
    assert waits_s is not None
    assert 20.0 <= waits_s <= 40.0
