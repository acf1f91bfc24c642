"""A tenant whose prompt is warm may go before one whose turn it is, as far as its credit reaches."""

from __future__ import annotations

import numpy as np

from services.router.policy import LatencyClass, PolicySettings, Scheduler
from services.router.policy.ticket import Digests
from tests.support.policy_values import make_ticket, make_worker

S = LatencyClass.STANDARD
NUMERICS = b"n"
PROMPT = 6400


def digests(seed: int) -> Digests:
    """The blocks of a prompt of PROMPT tokens."""
    return np.random.default_rng(seed).integers(0, 1 << 63, (PROMPT // 64, 2), np.uint64)


def served_before_the_cold_one(credit: float) -> int:
    """Warm requests of one tenant that go before the first cold one of another that came at the same time."""
    it = Scheduler(PolicySettings(locality_credit_tokens=credit))
    it.worker_changed(make_worker("w", 1, numerics=NUMERICS))
    shared = digests(1)
    it.fleet("m").index.stored("w", shared)
    it.submit(make_ticket(0, S, "cold", prompt=PROMPT, chains={NUMERICS: digests(2)}), 0.0)
    for number in range(1, 60):
        its = make_ticket(number, S, "warm", prompt=PROMPT, chains={NUMERICS: shared}, expected_output=500)
        it.submit(its, 0.0)
    for count in range(60):
        it.worker_changed(make_worker("w", 1, numerics=NUMERICS))
        assignment = it.next(0.0)
        assert assignment is not None
        if assignment.ticket.tenant == "cold":
            return count
        assert assignment.cost.prefill_tokens <= 64, "what is cached is neither computed nor booked"
        it.streamed(assignment.ticket.number, 500, 0.0)
        it.ended(assignment.ticket.number)
    return 60


def test_a_warm_tenant_goes_first_until_its_credit_is_used_up() -> None:
    weighted = 1 + 0.1 * (PROMPT - 1) + 2 * 500  # of one warm request
    for credit in (8_192.0, 32_768.0):
        ahead = served_before_the_cold_one(credit)
        assert abs(ahead - credit / weighted) <= 1.5


def test_without_credit_the_one_whose_turn_it_is_goes() -> None:
    assert served_before_the_cold_one(0.0) <= 1
