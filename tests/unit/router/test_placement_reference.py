"""A decision over arrays that are kept ready is the one that the rule says of each worker from its view."""

from __future__ import annotations

from math import floor
from random import Random

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.router.policy.classify import LatencyClass
from services.router.policy.fleet import Fleet
from services.router.policy.placement import Placement
from services.router.policy.placement_settings import PlacementSettings
from services.router.policy.speed import StepModel
from services.router.policy.ticket import Cost, Digests, Ticket
from services.router.policy.worker import BLOCK_TOKENS, WorkerView

RULE = PlacementSettings(patience=False)
FAST, SLOW = StepModel(2e-3, 1e-4, 1e-9, 1e-8, 1e-5), StepModel(1e-2, 4e-4, 5e-9, 1e-7, 1e-5)
EU = frozenset({("region", "eu")})


def view(draw: Random, key: str) -> WorkerView:
    """Any worker, closed and overdrawn ones among them."""
    sequences = draw.choice((0, 3, 10, 40, 60, 62))
    return WorkerView(
        key=key,
        model="m",
        ready=draw.random() < 0.9,
        credit=credit(draw),
        foreground_credit=draw.choice((None, credit(draw))),
        sequences=sequences,
        waiting_tokens=draw.choice((0, 500, 5_000, 90_000)),
        batch_sequences=draw.choice((0, sequences // 2, sequences)),
        batch_waiting_tokens=draw.choice((0, 400)),
        max_sequences=64,
        max_tokens=draw.choice((6_000, 100_000)),
        total_blocks=draw.choice((300, 6_000)),
        labels=draw.choice((frozenset(), EU)),
        numerics=b"n",
        step_model=draw.choice((FAST, FAST, SLOW)),
    )


def credit(draw: Random) -> Cost:
    return Cost(
        draw.choice((0, 50, 8192, 8192)), draw.choice((0, 5, 64)), draw.choice((-3, 60, 1_000, 10_000))
    )


def ticket(draw: Random, number: int, chain: Digests) -> Ticket:
    prompt = len(chain) * BLOCK_TOKENS + draw.choice((0, 1, 30, 2_000))
    return Ticket(
        number=number,
        model="m",
        tenant="t",
        latency_class=draw.choice(tuple(LatencyClass)),
        cost=Cost(prompt, 1, prompt // BLOCK_TOKENS + 5),
        total_tokens=prompt + 500,
        arrival_s=0.0,
        expected_output=draw.choice((10, 300)),
        labels=draw.choice((frozenset(), frozenset(), EU)),
        barred=frozenset(draw.choice(((), ("w0",)))),
        chains={b"n": chain},
    )


def by_the_rule(it: Ticket, fleet: Fleet) -> str | None:
    """The worker to take, without an array."""
    able = [each for each in fleet if each.ready and each.suits(it)]
    roomy = [
        each
        for each in able
        if each.total_blocks * BLOCK_TOKENS >= it.prefill_tokens / RULE.long_prompt_share
    ]
    able = roomy or able
    takers = [each for each in able if takes(it, each, it.cost, fleet)]
    keepers = [each for each in able if is_warm(it, each, fleet)]
    warm = [each for each in keepers if is_calm(it, each, able, fleet)]
    among = [each for each in takers if each in warm] or sharers(it, warm, fleet)
    if not among and keepers:
        among = [each for each in takers if is_calm(it, each, able, fleet) and has_space(it, each)]
    among = among or takers
    if not among:
        return None
    scores = {each.key: score(it, each, fleet) for each in among}
    best = min(scores.values())
    first = min(scores, key=lambda key: (scores[key], fleet.index.positions[key]))
    equals = [key for key, value in scores.items() if value <= best * (1 + RULE.tie_share)]
    cold = tokens_to_compute(it, first, fleet) > it.prefill_tokens - RULE.warm_share * it.prefill_tokens
    turns = fleet.last_cold if cold else fleet.last_given
    return min(equals, key=lambda key: (turns[fleet.index.positions[key]], fleet.index.positions[key]))


def sharers(it: Ticket, warm: list[WorkerView], fleet: Fleet) -> list[WorkerView]:
    """Warm workers with credit for the blocks that the prompt does not share with what they all keep."""
    hits = fleet.index.match(it.chains[b"n"])
    shared = min((int(hits[fleet.index.positions[each.key]]) for each in warm), default=0)
    own = it.cost._replace(kv_blocks=max(1, it.cost.kv_blocks - shared))
    return [each for each in warm if takes(it, each, own, fleet)]


def takes(it: Ticket, worker: WorkerView, cost: Cost, fleet: Fleet) -> bool:
    return (
        worker.affords(cost, it.foreground)
        and has_a_slot(it, worker)
        and (is_short(it) or is_quiet(it, worker, fleet))
    )


def is_quiet(it: Ticket, worker: WorkerView, fleet: Fleet) -> bool:
    """Prompts that take longer than a second anywhere go where less than half of that waits."""
    anywhere_s = fleet.speeds.token_s.min() + fleet.speeds.attention_s.min() / 2 * it.prefill_tokens
    if it.prefill_tokens * anywhere_s <= 1.0:
        return True
    its_s = own_s(it, worker, fleet)
    return its_s <= 1.0 or queue_s(it, worker, fleet) <= 0.5 * its_s


def is_short(it: Ticket) -> bool:
    return it.prefill_tokens < RULE.short_prompt_tokens and it.expected_output < RULE.short_output_tokens


def has_space(it: Ticket, worker: WorkerView) -> bool:
    blocks = worker.credit_for(it.foreground).kv_blocks
    return worker.sequences <= 0 or blocks >= worker.total_blocks / 4


def has_a_slot(it: Ticket, worker: WorkerView) -> bool:
    if is_short(it):
        return True
    usable = worker.max_sequences - floor(worker.max_sequences * RULE.short_slice)
    return max(0, sequences(it, worker)) < usable


def sequences(it: Ticket, worker: WorkerView) -> int:
    return worker.sequences - (worker.batch_sequences if it.foreground else 0)


def tokens_to_compute(it: Ticket, key: str, fleet: Fleet) -> int:
    hits = int(fleet.index.match(it.chains[b"n"])[fleet.index.positions[key]])
    return it.prefill_tokens - min(hits * BLOCK_TOKENS, max(0, it.prefill_tokens - 1))


def is_warm(it: Ticket, worker: WorkerView, fleet: Fleet) -> bool:
    cached = it.prefill_tokens - tokens_to_compute(it, worker.key, fleet)
    return cached >= RULE.warm_share * it.prefill_tokens


def load(it: Ticket, worker: WorkerView, fleet: Fleet) -> float:
    return max(0, sequences(it, worker)) * float(fleet.speeds.slowness[fleet.index.positions[worker.key]])


def queue_s(it: Ticket, worker: WorkerView, fleet: Fleet) -> float:
    tokens = worker.waiting_tokens - (worker.batch_waiting_tokens if it.foreground else 0)
    return max(0, tokens) * float(fleet.speeds.token_s[fleet.index.positions[worker.key]])


def is_calm(it: Ticket, worker: WorkerView, able: list[WorkerView], fleet: Fleet) -> bool:
    least = min(load(it, each, fleet) for each in able)
    bound = RULE.warm_load_factor * least + RULE.warm_load_slack
    return load(it, worker, fleet) <= bound and queue_s(it, worker, fleet) <= RULE.warm_queue_s


def score(it: Ticket, worker: WorkerView, fleet: Fleet) -> float:
    slowness = fleet.speeds.slowness[fleet.index.positions[worker.key]]
    seconds = own_s(it, worker, fleet) + queue_s(it, worker, fleet)
    return float(seconds * (load(it, worker, fleet) + slowness))


def own_s(it: Ticket, worker: WorkerView, fleet: Fleet) -> float:
    at, own = fleet.index.positions[worker.key], tokens_to_compute(it, worker.key, fleet)
    attention_s = fleet.speeds.attention_s[at] * (it.prefill_tokens - own / 2)
    return float(own * (fleet.speeds.token_s[at] + attention_s))


@given(st.integers(0, 1 << 32))
@example(6341882)
@settings(max_examples=60, deadline=None)
def test_decisions_follow_the_rule_whatever_was_reported_booked_and_kept(seed: int) -> None:
    draw, numbers = Random(seed), np.random.default_rng(seed)
    chains = [numbers.integers(1, 1 << 63, (length, 2), np.uint64) for length in (1, 5, 40)]
    fleet, placement = Fleet(), Placement(RULE)
    keys = [f"w{number}" for number in range(draw.choice((1, 4, 9, 20)))]
    for turn in range(40):
        key, chain = draw.choice(keys), draw.choice(chains)
        fleet.put(view(draw, key))
        fleet.index.stored(key, chain[: draw.choice((1, len(chain), len(chain)))])
        if draw.random() < 0.1:
            fleet.drop(draw.choice(keys))
        it = ticket(draw, turn, chain)
        choice = placement.choose(it, fleet, fleet.hits(it.chains), 0.0)
        assert choice.worker == by_the_rule(it, fleet)
        if choice.worker is not None:
            placement.book(choice, it, fleet, 0.0)
