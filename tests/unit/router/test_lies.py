"""A worker that lies about its speed or its load costs itself something; nobody is refused for it."""

from __future__ import annotations

import pytest

from services.router.policy import LatencyClass, Scheduler
from services.router.policy.speed import StepModel
from tests.support.policy_values import FAST, make_ticket, make_worker

I, S, B = LatencyClass  # noqa: E741
LIES = {
    "900 s a token": StepModel(2e-3, 900.0, 0.0, 0.0, 0.0),
    "500 times as slow": StepModel(1.0, 1e-2, 0.0, 0.0, 0.0),
    "no time at all": StepModel(0.0, 0.0, 0.0, 0.0, 0.0),
    "negative": StepModel(-1.0, 1.0, 1.0, 1.0, 1.0),
    "not a number": StepModel(float("nan"), 1.0, 1.0, 1.0, 1.0),
}


def pool(lie: StepModel, honest: int) -> Scheduler:
    it = Scheduler()
    for number in range(honest):
        it.worker_changed(make_worker(f"honest-{number}"))
    it.worker_changed(make_worker("liar", step_model=lie))
    return it


def token_s(it: Scheduler, key: str) -> float:
    fleet = it.fleet("m")
    return float(fleet.speeds.token_s[fleet.index.positions[key]])


@pytest.mark.parametrize("honest", [1, 2, 7])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_nobodys_deadline_is_refused_because_one_worker_claims_nonsense(lie: StepModel, honest: int) -> None:
    assert pool(lie, honest).admit(make_ticket(1, I, prompt=500, deadline_s=5.0), 0.0) is None


@pytest.mark.parametrize("honest", [0, 1, 2])
def test_a_claim_to_be_slow_holds_until_the_worker_shows_that_it_is_not(honest: int) -> None:
    it = pool(LIES["900 s a token"], honest)
    for number in range(3 * (honest + 1)):
        it.submit(make_ticket(number, S, prompt=500), 1.0)
        assignment = it.next(1.0)
        assert assignment is not None
        it.streamed(number, 1, 1.05)
    it.worker_changed(make_worker("liar", step_model=StepModel(2e-3, 950.0, 0.0, 0.0, 0.0)))
    assert token_s(it, "liar") < 1e-3, "another claim that is disproved changes nothing"
    for number in range(honest):
        assert token_s(it, f"honest-{number}") < 1e-3


def test_a_worker_that_became_slow_is_believed_when_it_shows_it() -> None:
    slow = FAST._replace(b=1e-2)
    it = pool(slow, 2)
    for number, took_s in ((0, 0.01), (1, 5.0)):
        for key in ("honest-0", "honest-1"):
            it.worker_changed(make_worker(key, ready=False))
        it.submit(make_ticket(number, S, prompt=500), 10.0)
        assignment = it.next(10.0)
        assert assignment is not None
        assert assignment.worker == "liar"
        it.streamed(number, 1, 10.0 + took_s)
        assert (token_s(it, "liar") > 5e-3) is (took_s > 1.0)


def test_a_prompt_that_took_as_long_as_claimed_disproves_nothing() -> None:
    it = pool(FAST, 0)
    before = token_s(it, "liar")
    it.submit(make_ticket(0, S, prompt=500), 0.0)
    assert it.next(0.0) is not None
    it.streamed(0, 1, FAST.prefill_s(500))
    assert token_s(it, "liar") == before


@pytest.mark.parametrize("honest", [1, 3, 9])
@pytest.mark.parametrize("waiting", [10**6, 10**12])
def test_what_one_worker_claims_to_have_waiting_sheds_nobody_where_others_are_idle(
    waiting: int, honest: int
) -> None:
    it = pool(FAST, honest)
    it.worker_changed(make_worker("liar", sequences=5000, waiting_tokens=waiting))
    tickets = [make_ticket(number, S, sheddable=True) for number in range(200)]
    assert all(it.admit(each, 0.0) is None for each in tickets)


def test_what_all_workers_have_waiting_sheds() -> None:
    it = Scheduler()
    for number in range(4):
        it.worker_changed(make_worker(f"w{number}", sequences=500, waiting_tokens=10**6 * (1 + number)))
    tickets = [make_ticket(number, S, sheddable=True) for number in range(200)]
    assert all(it.admit(each, 0.0) is not None for each in tickets)
