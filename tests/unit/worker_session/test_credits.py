"""Credits: N routers never overfill the window, honest ones are never refused, nobody starves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.session.credits import NOTHING, CreditBook, Demand, Room

WINDOW = Room(1000, 16, 64)


def book_of(sessions: int, window: Room = WINDOW) -> CreditBook:
    book = CreditBook()
    book.report(window, 0, idle=False)
    for session in range(sessions):
        book.open(session)
    return book


def test_one_session_gets_all() -> None:
    assert book_of(1).grant(0, 3) == WINDOW


def test_sessions_without_demand_share_evenly() -> None:
    book = book_of(4)
    assert [book.grant(each, 3) for each in range(4)] == [Room(250, 4, 16)] * 4


def test_shares_follow_demand_and_leave_the_others_something() -> None:
    book = book_of(2)
    book.demand(0, Demand(900, 9))
    first, second = book.grant(0, 3), book.grant(1, 3)
    assert first == Room(875, 14, 56)
    assert second == Room(125, 2, 8)


def test_without_a_grant_nothing_is_admitted() -> None:
    book = book_of(2)
    assert not book.admit(0, 1, Room(1, 1, 1))


def test_a_charge_counts_until_the_report_that_contains_it() -> None:
    book = book_of(1)
    book.grant(0, 3)
    assert book.admit(0, 1, Room(100, 1, 2))
    book.submitted(1, command=5)
    # the wire's credit counts from the acknowledged command on: the router takes its own charge off it
    assert book.grant(0, 4) == WINDOW
    assert book.exposure() == WINDOW.minus(Room(100, 1, 2))
    book.report(Room(880, 15, 62), last_command=5, idle=False)
    assert book.grant(0, 5) == Room(880, 15, 62)


def test_a_long_prompt_may_overdraw_once() -> None:
    book = book_of(1)
    book.grant(0, 3)
    assert book.admit(0, 1, Room(50_000, 1, 500))
    assert not book.admit(0, 2, Room(1, 1, 1))
    assert book.grant(0, 4).minus(Room(50_000, 1, 500)) == Room(0, 15, 0)


def test_blocks_do_not_count_while_the_worker_is_idle() -> None:
    book = book_of(1, Room(1000, 16, 0))
    book.report(Room(1000, 16, 0), 0, idle=True)
    book.grant(0, 3)
    assert book.admit(0, 1, Room(10, 1, 1))
    book.report(Room(1000, 16, 0), 0, idle=False)
    assert not book.admit(0, 2, Room(10, 1, 1))


def test_a_grant_that_the_router_may_still_use_is_not_given_to_others() -> None:
    book = book_of(1)
    book.grant(0, 3)
    book.open(1)
    assert book.grant(1, 3) == NOTHING
    book.demand(1, Demand(100, 1))
    book.grant(0, 4)
    book.acknowledged(0, 3)
    assert book.grant(1, 4) == NOTHING
    book.acknowledged(0, 4)
    assert book.grant(1, 5).sequences > 8


def test_a_closed_session_gives_everything_back() -> None:
    book = book_of(2)
    book.grant(0, 3)
    assert book.admit(0, 1, Room(10, 1, 1))
    book.close(0)
    assert book.grant(1, 3) == WINDOW


def test_the_last_unit_goes_round() -> None:
    book = book_of(3, Room(1000, 1, 64))
    for session in range(3):
        book.demand(session, Demand(100, 5))
    order, frame = [], 3
    for key in range(12):
        admitted = None
        while admitted is None:
            frame += 1
            for session in range(3):
                book.grant(session, frame)
            admitted = next((each for each in range(3) if book.admit(each, key, Room(1, 1, 1))), None)
            for session in range(3):
                book.acknowledged(session, frame)
        order.append(admitted)
        book.submitted(key, command=key + 1)
        book.report(Room(1000, 1, 64), last_command=key + 1, idle=False)
    assert [order.count(each) for each in range(3)] == [4, 4, 4]


@dataclass
class HonestRouter:
    """Spends what it was granted, less what is under way, over links with any delay."""

    inbox: deque[tuple[int, int, Room]] = field(default_factory=deque)  # frame, acknowledged command, credit
    outbox: deque[tuple[int, int, list[tuple[int, Room]]]] = field(default_factory=deque)
    bookings: list[tuple[int, Room]] = field(default_factory=list)  # frame it left with, cost
    credit: Room = NOTHING
    acknowledged: int = 0
    handled: int = 2
    sent: int = 2

    def read(self) -> None:
        if self.inbox:
            self.handled, self.acknowledged, self.credit = self.inbox.popleft()
            self.bookings = [each for each in self.bookings if each[0] > self.acknowledged]

    def left(self) -> Room:
        left = self.credit
        for _, cost in self.bookings:
            left = left.minus(cost)
        return left

    def submit(self, key: int, cost: Room) -> bool:
        left = self.left()
        if left.sequences < 1 or left.prefill_tokens < 1 or left.kv_blocks < 1:
            return False
        self.sent += 1
        self.bookings.append((self.sent, cost))
        self.outbox.append((self.sent, self.handled, [(key, cost)]))
        return True


class Worker:
    """The worker's side of the exchange: one engine that starts nothing by itself."""

    def __init__(self, window: Room, routers: int) -> None:
        self.window = window
        self.book = CreditBook()
        self.routers = [HonestRouter() for _ in range(routers)]
        self.frames = [2] * routers
        self.mapping: list[deque[tuple[int, int]]] = [deque() for _ in range(routers)]
        self.acknowledged = [2] * routers
        self.command = self.reported = 0
        self.accepted: dict[int, tuple[int, Room]] = {}  # command by key, until the engine has started it
        self.started: list[Room] = []
        for session in range(routers):
            self.book.open(session)
        self.report()

    def report(self, lag: int = 0) -> None:
        """The engine has seen all commands but the last `lag`."""
        self.reported = max(self.reported, self.command - lag)
        busy = NOTHING
        for command, cost in self.accepted.values():
            busy = busy.plus(cost) if command <= self.reported else busy
        self.book.report(self.window.minus(busy).most(NOTHING), self.reported, idle=False)

    def write(self, session: int) -> None:
        self.frames[session] += 1
        mapping = self.mapping[session]
        while mapping and mapping[0][1] <= self.reported:
            self.acknowledged[session] = mapping.popleft()[0]
        room = self.book.grant(session, self.frames[session])
        self.routers[session].inbox.append((self.frames[session], self.acknowledged[session], room))

    def read(self, session: int) -> None:
        if not self.routers[session].outbox:
            return
        number, acknowledged, submits = self.routers[session].outbox.popleft()
        for key, cost in submits:
            assert self.book.admit(session, key, cost), "an honest router was refused"
            self.command += 1
            self.book.submitted(key, self.command)
            self.accepted[key] = (self.command, cost)
        self.mapping[session].append((number, self.command))
        self.book.acknowledged(session, acknowledged)

    def begin_one(self) -> None:
        """The engine ends its oldest request; the next report has its room again."""
        if self.accepted:
            del self.accepted[next(iter(self.accepted))]


MOVES = [
    "write",
    "write",
    "router",
    "router",
    "submit",
    "submit",
    "submit",
    "read",
    "read",
    "report",
    "end",
    "demand",
]
moves = st.lists(
    st.tuples(
        st.sampled_from(MOVES),
        st.integers(0, 4),
        st.integers(1, 400),
    ),
    min_size=30,
    max_size=150,
)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 5), moves, st.builds(Room, st.integers(1, 600), st.integers(1, 8), st.integers(1, 30)))
def test_honest_routers_never_overfill_and_are_never_refused(
    routers: int, steps: list[tuple[str, int, int]], window: Room
) -> None:
    worker, largest = Worker(window, routers), NOTHING
    for key, (move, which, amount) in enumerate(steps):
        session = which % routers
        if move == "write":
            worker.write(session)
        elif move == "router":
            worker.routers[session].read()
        elif move == "submit":
            cost = Room(amount, 1, amount // 64 + 1)
            if worker.routers[session].submit(key, cost):
                largest = largest.most(cost)
        elif move == "read":
            worker.read(session)
        elif move == "report":
            worker.report(amount % 4)
        elif move == "end":
            worker.begin_one()
        else:
            worker.book.demand(session, Demand(amount, which))
        _holds(worker, largest)


def _holds(worker: Worker, largest: Room) -> None:
    """All that was accepted or may still come fits; the last request of each may overdraw."""
    accepted = NOTHING
    for _, cost in worker.accepted.values():
        accepted = accepted.plus(cost)
    assert accepted.sequences <= worker.window.sequences
    overdraft = largest.prefill_tokens * len(worker.routers)
    assert accepted.prefill_tokens <= worker.window.prefill_tokens + overdraft
    exposure, free = worker.book.exposure(), worker.book.free()
    on_the_way = NOTHING
    for router in worker.routers:
        for _, _, submits in router.outbox:
            for _, cost in submits:
                on_the_way = on_the_way.plus(cost)
    assert on_the_way.sequences <= exposure.sequences
    assert exposure.sequences <= free.sequences
    assert exposure.kv_blocks <= max(free.kv_blocks, 0) or largest.kv_blocks > 1


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 2**64), st.integers(0, 2**32)), min_size=1, max_size=6),
)
def test_shares_are_whole_and_add_up_whatever_is_demanded(
    amount: int, demands: list[tuple[int, int]]
) -> None:
    book = book_of(len(demands), Room(amount, amount, amount))
    for session, demand in enumerate(demands):
        book.demand(session, Demand(*demand))
    total = NOTHING
    for session in range(len(demands)):
        room = book.grant(session, 3)
        assert min(room) >= 0
        total = total.plus(room)
    assert total == Room(amount, amount, amount)
