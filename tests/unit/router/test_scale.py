"""What a request weighs is worked out once in a turn, and never later than something changed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from services.router.policy import Cost, LatencyClass, PolicySettings
from services.router.policy.pool import Pool
from services.router.policy.scale import Scale
from services.router.policy.ticket import Digests, Ticket
from tests.support.policy_values import make_ticket, make_worker

CHAINS = [np.random.default_rng(number).integers(1, 1 << 63, (4, 2), np.uint64) for number in range(3)]


def asked(number: int, chain: Digests) -> Ticket:
    return make_ticket(number, LatencyClass.STANDARD, prompt=300, chains={b"n": chain})


def change(pool: Pool, draw: random.Random, now: float) -> None:
    """One of all that can happen to workers and to what they keep."""
    fleet, key, chain = pool.fleet, f"w{draw.randrange(12)}", draw.choice(CHAINS)[: draw.randint(1, 4)]
    if key not in fleet or draw.random() < 0.2:
        pool.put(make_worker(key, sequences=draw.randrange(5), waiting_tokens=draw.randrange(500)))
        return
    act = draw.randrange(8)
    if act == 0:
        pool.lose(key)
    elif act == 1:
        fleet.book(fleet.index.positions[key], Cost(100, 1, 5), cold=True, foreground=draw.random() < 0.5)
    elif act == 2:
        fleet.index.expect(key, chain, now)
    elif act == 3:
        fleet.index.expire(now)
    elif act == 4:
        fleet.index.removed(key, chain)
    elif act == 5:
        fleet.index.cleared(key)
    elif act == 6:
        fleet.computed(key, 1000, 0, draw.choice([1e-4, 10.0]))
    else:
        fleet.index.stored(key, chain)


@pytest.mark.parametrize("seed", range(20))
def test_a_remembered_weight_is_what_it_would_come_to_now(seed: int) -> None:
    draw, pool = random.Random(seed), Pool(PolicySettings())
    tickets = [asked(number, chain) for number, chain in enumerate(CHAINS)]
    for step in range(300):
        change(pool, draw, 0.5 * step)
        ticket, fresh = draw.choice(tickets), Scale(pool.fleet, pool.predictor)
        if draw.random() < 0.7:
            assert pool.scale.weigh(ticket) == fresh.weigh(ticket)
            assert pool.scale.estimate(ticket, 40) == pool.predictor.estimate(ticket, 40)
        assert pool.scale.hits(ticket).tolist() == pool.fleet.hits(ticket.chains).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_of_workers_as_they_change_is_what_they_are(seed: int) -> None:
    draw, pool = random.Random(seed), Pool(PolicySettings())
    for step in range(300):
        change(pool, draw, 0.5 * step)
        fleet, fresh = pool.fleet, Pool(PolicySettings()).fleet
        assert fleet.mean_sequences == fleet.sequences.sum() / max(1, len(fleet))
        for view in fleet:
            fresh.put(view)
        for foreground in (False, True):
            for name in ("sequences", "waiting_tokens", "room", "open"):
                held, anew = (getattr(each.busy(foreground), name) for each in (fleet, fresh))
                for key, position in fleet.index.positions.items():
                    assert held[position] == anew[fresh.index.positions[key]]


def test_a_prompt_is_looked_up_once_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, ticket = Pool(PolicySettings()), asked(1, CHAINS[0])
    pool.put(make_worker())
    looked_up = []
    match = pool.fleet.index.match
    monkeypatch.setattr(pool.fleet.index, "match", lambda chain: looked_up.append(1) or match(chain))
    pool.outlook(ticket, 0.0)
    pool.submit(ticket, 0.0)
    assert pool.next(0.0) is not None
    assert len(looked_up) == 1
