"""Loads on which a part of the policy has its reason; the other suites' loads ask for few of them.

class shares                                   plain work without end beside chat
ageing, relegation                             mixed classes far beyond the fleet
interactive budget                             a tenant that streams everything
lift                                           a tenant that comes back after a while
locality credit                                tenants with long prefixes that do not all fit, beyond the knee
fair thinning                                  sheddable work beside a heavy neighbour
refusal of infeasible deadlines                deadlines of seconds, far beyond the fleet
long prompts                                   books among chats, on devices of which some are small
cleared workers                                the same where all are small
short slice, preemption                        answers of thousands of tokens in all sequence slots
turns of cold requests                         one prefix that half of all requests share
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.sim import loads
from bench.sim.experiments import REASONABLE, Experiment, LoadMaker, Options, azure, h100
from bench.sim.fleet import Fleet
from bench.sim.loads import Load
from bench.sim.request import Part, SimRequest, Story
from bench.sim.suites import split_all, split_classes
from services.worker.scheduler.request import LatencyClass

Change = Callable[[SimRequest, random.Random], SimRequest]

SHORT_PROMPT, SHORT_OUTPUT = 512, 64
BOOKS, SHORT = "books", "short"
BOOK_TOKENS = (9_000, 15_000)


def _with(make: LoadMaker, change: Change) -> LoadMaker:
    return lambda options, seed: loads.changed(make(options, seed), change, seed)


def _mixed(make: LoadMaker) -> LoadMaker:
    return lambda options, seed: loads.mixed(make(options, seed), seed)


def _beside_heavy(make: LoadMaker, *, sheddable: float = 0.0) -> LoadMaker:
    def load(options: object, seed: int) -> Load:
        shared = loads.neighbours(make(options, seed), 0.7, 5, seed)  # type: ignore[arg-type]
        return loads.sheddable(shared, sheddable, seed + 1)

    return load


def _streams_everything(each: SimRequest, draw: random.Random) -> SimRequest:
    """Nobody names a class: all that the heavy tenant asks for streams, nothing of the light ones'."""
    if draw.random() < 0.7:
        return replace(each, tenant="heavy", latency_class=None)
    return replace(each, tenant=f"light{draw.randrange(5)}", latency_class=None, streaming=False)


def _due_soon(each: SimRequest, draw: random.Random) -> SimRequest:
    return replace(each, deadline_after_s=draw.uniform(2.0, 20.0))


def _book(each: SimRequest, draw: random.Random) -> SimRequest:
    """Every fiftieth prompt is a book."""
    if draw.random() > 0.02:
        return each
    part = Part(each.parts[0].content, draw.randint(*BOOK_TOKENS))
    return replace(each, parts=(part,), ttft_target_s=loads.LONG_TTFT_S)


def _essay(each: SimRequest, draw: random.Random) -> SimRequest:
    """Two of three answers are long and need not come soon; half of the others are short, prompts too."""
    place = draw.random()
    if place < 0.67:
        return replace(
            each, output_tokens=draw.randint(500, 1500), latency_class=LatencyClass.STANDARD, streaming=False
        )
    if place < 0.83:
        return each
    part = Part(each.parts[0].content, draw.randint(50, 400))
    return replace(each, parts=(part,), output_tokens=draw.randint(5, 50), max_tokens=60)


def _plain_flood(each: SimRequest, draw: random.Random) -> SimRequest:
    """Three of four requests are plain ones."""
    if draw.random() < 0.25:
        return each
    return replace(each, latency_class=LatencyClass.STANDARD, streaming=False)


def _returning(make: LoadMaker) -> LoadMaker:
    """Four tenants, of which the heavy one asks for nothing in the first half."""

    def load(options: object, seed: int) -> Load:
        whole = make(options, seed)  # type: ignore[arg-type]
        half_s = whole[-1].arrival_s / 2

        def give(each: SimRequest, draw: random.Random) -> SimRequest:
            back = each.arrival_s > half_s and draw.random() < 0.4
            return replace(each, tenant="heavy" if back else f"light{draw.randrange(3)}")

        return loads.changed(whole, give, seed)

    return load


def _long_prefixes(rate: float, requests: int, tenants: int = 20) -> LoadMaker:
    """Each tenant has a long prefix of its own: together more than the worker's KV holds."""

    def own(each: SimRequest, draw: random.Random) -> SimRequest:
        tenant = f"t{each.parts[0].content}"
        return replace(each, tenant=tenant, kv_key=loads.key_of(tenant), output_tokens=draw.randint(50, 150))

    def load(options: Options, seed: int) -> Load:
        count = options.count(requests)
        return loads.shared_prefix(
            rate=rate, count=count, seed=seed, groups=tenants, users=50, system=30_000, own=500
        )

    return _with(load, own)


def _prefixes(rate: float, requests: int) -> LoadMaker:
    return lambda options, seed: loads.shared_prefix(rate=rate, count=options.count(requests), seed=seed)


def _one_prefix(rate: float, requests: int) -> LoadMaker:
    """Half of all requests share one prefix, the others that of their group."""

    def hot(each: SimRequest, draw: random.Random) -> SimRequest:
        first = each.parts[0]._replace(content=1) if draw.random() < 0.5 else each.parts[0]
        return replace(each, parts=(first, *each.parts[1:]), output_tokens=draw.randint(50, 300))

    return _with(_prefixes(rate, requests), hot)


PURPOSES = (
    Experiment(
        name="chat x5 beside plain work x15, 4 H100", fleet=h100(4), load=_with(azure(20, 4000), _plain_flood)
    ),
    Experiment(name="mixed classes, Azure x16, 4 H100", fleet=h100(4), load=_mixed(azure(16, 4000))),
    Experiment(
        name="one streams everything, Azure x4, 1 H100",
        fleet=h100(1),
        load=_with(azure(4, 4000), _streams_everything),
    ),
    Experiment(
        name="a tenant comes back, Azure x18, 4 H100", fleet=h100(4), load=_returning(azure(18, 4000))
    ),
    Experiment(name="20 tenants' long prefixes 3/s, 1 H100", fleet=h100(1), load=_long_prefixes(3, 600)),
    Experiment(
        name="30 % sheddable beside a heavy one, Azure x16, 4 H100",
        fleet=h100(4),
        load=_beside_heavy(azure(16, 4000), sheddable=0.3),
    ),
    Experiment(
        name="deadlines of 2 to 20 s, Azure x20, 4 H100",
        fleet=h100(4),
        load=_with(azure(20, 4000), _due_soon),
    ),
    Experiment(
        name="books among chats, 2 H100 + 4 L4",
        fleet=Fleet(devices=("h100-8b",) * 2 + ("l4-8b",) * 4),
        load=_with(azure(7, 3000), _book),
        targets=REASONABLE,
    ),
    Experiment(
        name="books among chats, 6 L4",
        fleet=Fleet(devices=("l4-8b",) * 6),
        load=_with(azure(1.5, 1500), _book),
        targets=REASONABLE,
    ),
    Experiment(
        name="essays in 8 slots, 4 H100",
        fleet=h100(4, max_seqs=8),
        load=_with(azure(1.5, 1500), _essay),
    ),
    Experiment(name="one hot prefix 40/s, 8 H100", fleet=h100(8), load=_one_prefix(40, 4000)),
)


def split_by_purpose(stories: Sequence[Story]) -> dict[str, list[Story]]:
    """By all that other suites tell apart, by class, and books and short requests among others."""
    parts = {**split_all(stories), **split_classes(stories)}
    parts[BOOKS] = [story for story in stories if story.request.prompt_tokens >= BOOK_TOKENS[0]]
    parts[SHORT] = [
        story
        for story in stories
        if story.request.prompt_tokens < SHORT_PROMPT and story.request.output_tokens < SHORT_OUTPUT
    ]
    told = {name: part for name, part in parts.items() if any(each.end_s is not None for each in part)}
    return {name: part for name, part in told.items() if len(part) < len(stories)}
