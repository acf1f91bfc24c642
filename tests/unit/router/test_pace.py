"""Far beyond what fits the targets, part of what is asked for is served well; short of it nothing changes."""

from __future__ import annotations

import pytest

from services.router.policy.classify import LatencyClass
from services.router.policy.pace import FULL_S, Pace
from services.router.policy.preemption import Seat
from services.router.policy.queue import Lane
from services.router.policy.scheduler import Scheduler
from services.router.policy.settings import PolicySettings
from services.router.policy.speed import StepModel
from services.router.policy.ticket import Cost, Ticket
from services.router.policy.worker import WorkerView

MODEL = StepModel(6e-3, 2.5e-5, 0.0, 5e-8, 2e-5)
TARGET_S = 0.04


def ticket(number: int, latency_class: LatencyClass = LatencyClass.INTERACTIVE, at_s: float = 0.0) -> Ticket:
    return Ticket(
        number=number,
        model="m",
        tenant="t",
        latency_class=latency_class,
        cost=Cost(1000, 1, 32),
        total_tokens=2000,
        arrival_s=at_s,
        expected_output=1000,
    )


def seat(it: Ticket, worker: str = "w") -> Seat:
    return Seat(
        ticket=it,
        worker=worker,
        since_s=0.0,
        lane=Lane.INTERACTIVE,
        cost=it.cost,
        cached_tokens=0,
        prefill_s=0.03,
        total_s=0.2,
        predicted_first_s=0.1,
    )


def view(sequences: int = 0, **more: object) -> WorkerView:
    values: dict[str, object] = {
        "credit": Cost(1 << 20, 4096, 1 << 20),
        "max_sequences": 4096,
        "max_tokens": 10_000,
    }
    return WorkerView(
        key="w",
        model="m",
        ready=True,
        sequences=sequences,
        waiting_tokens=0,
        total_blocks=10_000,
        step_model=MODEL,
        **(values | more),  # type: ignore[arg-type]
    )


def asked_of(pace: Pace, share: float, from_s: int, until_s: int, sequences: float = 1.0) -> None:
    """So much of what one worker could ever do, in steps of a tenth of a second."""
    each = ticket(0)
    a_second = 100 * each.expected_output
    scaled = StepModel(MODEL.a, share / a_second, 0.0, 0.0, 0.0)
    for tenth in range(10 * from_s, 10 * until_s):
        for _ in range(10):
            pace.came(each, scaled)
        pace.look(tenth / 10, TARGET_S, MODEL, 1, sequences)


def test_what_can_be_served_is_never_paced_and_what_cannot_is_until_it_is_over() -> None:
    pace = Pace()
    pace.seated(seat(ticket(0)))
    for turn, (share, paced) in enumerate(((0.97, False), (1.1, True), (0.99, True), (0.9, False))):
        asked_of(pace, share, 100 * turn, 100 * turn + 100)
        assert (pace.target_s is not None) == paced


def test_a_burst_that_is_served_soon_does_not_pace() -> None:
    pace = Pace()
    pace.seated(seat(ticket(0)))
    asked_of(pace, 0.5, 0, 20)
    asked_of(pace, 4.0, 20, 21)
    assert 0.0 < pace.debt_s < FULL_S
    assert pace.target_s is None


def test_however_much_was_too_much_its_debt_is_bounded() -> None:
    pace = Pace()
    pace.seated(seat(ticket(0)))
    asked_of(pace, 100.0, 0, 60)
    assert pace.debt_s <= FULL_S
    asked_of(pace, 0.5, 60, 60 + 4 * int(FULL_S))
    assert pace.target_s is None


def test_requests_of_other_routers_are_asked_for_too() -> None:
    alone, one_of_two = Pace(), Pace()
    for pace, sequences in ((alone, 1.0), (one_of_two, 2.0)):
        pace.seated(seat(ticket(0)))
        asked_of(pace, 0.75, 0, 60, sequences)
    assert alone.target_s is None
    assert one_of_two.target_s is not None


def paced() -> Pace:
    pace = Pace()
    for number in range(8):
        pace.seated(seat(ticket(number)))
    asked_of(pace, 1.5, 0, 60, 8.0)
    assert pace.target_s == TARGET_S
    return pace


def test_a_paced_worker_takes_what_fits_the_target_and_no_less_of_what_it_can_ever_do_than_most() -> None:
    pace, fits = paced(), int((TARGET_S - MODEL.a) / (MODEL.b + MODEL.e + 1500 * MODEL.d))
    for sequences, left in ((0, fits), (fits - 3, 3), (fits + 50, 0)):
        held = view(sequences)
        pace.hold(held, MODEL)
        assert held.credit_for(True).sequences == left
        assert held.credit.sequences == 4096, "batch work has its own measure"
    pace.look(100.0, 1e-6, MODEL, 1, 8.0)
    assert pace.target_s is None or pace.target_s == pytest.approx(5 * MODEL.a)


def test_batch_work_neither_paces_nor_counts() -> None:
    pace = Pace()
    pace.seated(seat(ticket(0, LatencyClass.BATCH)))
    pace.came(ticket(1, LatencyClass.BATCH), MODEL)
    assert pace.tightest is None
    pace.look(0.0, None, MODEL, 1, 0.0)
    assert pace.target_s is None


def test_what_has_left_its_worker_is_read_no_more() -> None:
    pace, held = paced(), view(0)
    for number in range(8):
        pace.seated(seat(ticket(number)), -1)
    pace.hold(held, MODEL)
    assert pace.tightest is None
    most = int((TARGET_S - MODEL.a) / (MODEL.b + MODEL.e))
    assert held.credit_for(True).sequences == most, "where nothing runs, contexts are thought to be short"


@pytest.mark.parametrize("pace", [True, False])
def test_under_far_too_much_a_worker_gets_no_more_than_fits_the_target(pace: bool) -> None:
    it, fits = (
        Scheduler(PolicySettings(pace=pace, admission=False)),
        int((TARGET_S - MODEL.a) / (MODEL.b + MODEL.e + 1500 * MODEL.d)),
    )
    running = 0
    for tenth in range(400):
        now = tenth / 10
        it.worker_changed(view(running))
        for number in range(4):
            it.submit(ticket(10 * tenth + number, at_s=now), now)
        while running < 2000 and it.next(now) is not None:
            running += 1
    assert (running > 1500) != pace
    assert not pace or fits <= running < 1.5 * fits
