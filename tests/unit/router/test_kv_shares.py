"""A tenant holds at most its part of the KV memory, waits for it, and holds up nobody else."""

from __future__ import annotations

from services.common.identity import Tenant
from services.router.kv_shares import KvShares
from services.router.policy import (
    Assignment,
    Cost,
    LatencyClass,
    PolicySettings,
    Scheduler,
    Ticket,
    WorkerView,
)
from services.router.policy.budget import InteractiveBudget
from services.router.policy.rates import Lease
from services.router.quotas import Quotas

A, B = Tenant(name="a", kv_share=0.25), Tenant(name="b")


class Desk:
    """A scheduler with one worker of 400 blocks; every request takes 40."""

    def __init__(self, routers: int = 1) -> None:
        self.scheduler, self.quotas = Scheduler(PolicySettings()), Quotas(routers)
        self.shares = KvShares(self.scheduler, self.quotas)
        for tenant in (A, B):
            self.quotas.of(tenant)
        self.scheduler.worker_changed(
            WorkerView(
                key="w",
                model="m",
                ready=True,
                credit=Cost(10_000, 100, 400),
                sequences=0,
                waiting_tokens=0,
                max_sequences=128,
                max_tokens=10_000,
                total_blocks=400,
            )
        )

    def submit(self, number: int, tenant: str) -> None:
        ticket = Ticket(
            number=number,
            model="m",
            tenant=tenant,
            latency_class=LatencyClass.STANDARD,
            cost=Cost(10, 1, 40),
            total_tokens=100,
            arrival_s=0.0,
        )
        self.scheduler.submit(ticket, 0.0)

    def go(self, now: float = 0.0) -> list[int]:
        found: list[Assignment] = []
        while (assignment := self.scheduler.next(now)) is not None:
            self.shares.seated(assignment, now)
            found.append(assignment)
        return [each.ticket.number for each in found]

    def end(self, number: int, now: float) -> None:
        self.shares.left(number, now)
        self.shares.left(number, now)
        self.scheduler.ended(number)


def test_what_would_hold_more_than_its_part_waits_while_others_go() -> None:
    desk = Desk()
    for number in range(5):
        desk.submit(number, "a")
    for number in range(10, 14):
        desk.submit(number, "b")
    assert sorted(desk.go()) == [0, 1, 10, 11, 12, 13]
    desk.end(0, 1.0)
    assert desk.go(1.0) == [2]
    desk.end(1, 2.0)
    desk.end(2, 2.0)
    assert desk.go(2.0) == [3, 4]


def test_of_two_routers_each_has_its_half_until_more_is_granted() -> None:
    desk = Desk(routers=2)
    for number in range(4):
        desk.submit(number, "a")
    assert desk.go() == [0]
    level = desk.quotas.kv_of("a")
    assert level is not None
    claim = level.claim(0.1)
    level.settle(0.1, claim, Lease(claim.wanted, 2.0, 0.0))
    desk.shares.review(0.1)
    assert desk.go(0.1) == [1]


def test_a_tenant_without_a_part_of_its_own_may_have_all() -> None:
    desk = Desk()
    for number in range(9):
        desk.submit(number, "b")
    assert len(desk.go()) == 9


def test_an_interactive_share_of_its_own_holds_also_on_an_idle_pool() -> None:
    budget = InteractiveBudget(PolicySettings(budget_window_s=10.0))

    def ticket(share: float | None) -> Ticket:
        return Ticket(
            number=1,
            model="m",
            tenant=str(share),
            latency_class=LatencyClass.INTERACTIVE,
            cost=Cost(10, 1, 1),
            total_tokens=10,
            arrival_s=0.0,
            interactive_share=share,
        )

    assert [budget.allows(ticket(0.2), 1.0, 0.0, 1, 0.0) for _ in range(3)] == [True, True, False]
    assert all(budget.allows(ticket(None), 1.0, 0.0, 1, 0.0) for _ in range(30))
