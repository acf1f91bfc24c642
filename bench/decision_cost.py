"""What one decision of the router costs, and what its prefix index weighs.

A decision is the walk of a prompt's 512 blocks through the index, every block kept by some worker, then the
choice among all workers, then the booking: the production objects of services/router/policy. As in service
the prompt was looked up once before, when it was admitted; `first_look` says what it costs without that.
Times are CPU times of this thread, so that neighbours on the machine do not count; the wall clock stands
beside them.

    python -m bench.decision_cost [--repeats 5] [--decisions 600] [--results DIR]
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from bench.results_contract import RESULTS, Row, record, row
from services.router.policy.classify import LatencyClass
from services.router.policy.fleet import Fleet
from services.router.policy.placement import Choice, Placement
from services.router.policy.prefix_index import PrefixIndex
from services.router.policy.speed import PRIOR, StepModel
from services.router.policy.ticket import Cost, Digests, Ticket
from services.router.policy.trails import BLOCKS_KEPT
from services.router.policy.worker import BLOCK_TOKENS, WorkerView

CHAIN = 512
CHAINS = 48
assert CHAIN * CHAINS > BLOCKS_KEPT, "a chain's turn comes again when the index has forgotten where it was"
NUMERICS = b"n"
T = TypeVar("T")
PLENTY = Cost(1 << 38, 1 << 38, 1 << 38)


class Pool(NamedTuple):
    """A fleet to measure, and what a decision in it may cost."""

    workers: int
    blocks: int  # kept by each worker beside the chains that are asked for
    most_us: float


POOLS = (Pool(32, 6000, 50.0), Pool(1000, 2000, 150.0))
KEEPERS = ("one worker", "every worker", "four workers")
STEPS = "each worker another length"
"""The worst case of the walk: as many different answers as there are workers."""


class Draw:
    """Random digests, the same in every run."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def digests(self, count: int) -> Digests:
        return self._random.integers(1, 1 << 63, (count, 2), np.uint64)

    def step_model(self) -> StepModel:
        return StepModel(*(np.array(PRIOR[:5]) * self._random.uniform(0.9, 1.1)).tolist())

    def several(self, count: int, most: int) -> list[int]:
        return self._random.choice(most, count, replace=False).tolist()  # type: ignore[no-any-return]


def fleet_of(pool: Pool, draw: Draw) -> Fleet:
    """Workers with full caches, as they are met in service."""
    fleet = Fleet()
    for number in range(pool.workers):
        fleet.put(worker(f"w{number}", number % 5, draw))
        for start in range(0, pool.blocks, CHAIN):
            fleet.index.stored(f"w{number}", draw.digests(min(CHAIN, pool.blocks - start)))
    return fleet


def worker(key: str, sequences: int, draw: Draw) -> WorkerView:
    """A worker whose credit never ends."""
    return WorkerView(
        key=key,
        model="m",
        ready=True,
        credit=PLENTY,
        sequences=sequences,
        waiting_tokens=10 * sequences,
        max_sequences=1 << 30,
        max_tokens=1 << 30,
        total_blocks=1 << 20,
        numerics=NUMERICS,
        step_model=draw.step_model(),
    )


def tickets(fleet: Fleet, keepers: str, draw: Draw) -> list[Ticket]:
    """Requests whose prompts are kept whole, in an index that has grown to its size."""
    made = []
    for number in range(CHAINS):
        chain = draw.digests(CHAIN)
        for key, part in kept(fleet, keepers, chain, number):
            fleet.index.stored(key, part)
        made.append(ticket(number, chain))
    while not fleet.index.settled:
        fleet.index.expire(0.0)
    return made


def kept(fleet: Fleet, keepers: str, chain: Digests, number: int) -> Iterator[tuple[str, Digests]]:
    """Which worker keeps what of a chain."""
    keys = list(fleet.index.positions)
    if keepers == STEPS:
        yield from ((key, chain[: max(1, CHAIN * (at + 1) // len(keys))]) for at, key in enumerate(keys))
    else:
        count = {"one worker": 1, "four workers": 4, "every worker": len(keys)}[keepers]
        yield from ((keys[(number + step) % len(keys)], chain) for step in range(count))


def ticket(number: int, chain: Digests) -> Ticket:
    """A request for a prompt a little longer than its whole blocks."""
    prompt = CHAIN * BLOCK_TOKENS + 10
    return Ticket(
        number=number,
        model="m",
        tenant="t",
        latency_class=LatencyClass.INTERACTIVE,
        cost=Cost(prompt, 1, CHAIN + 1),
        total_tokens=prompt + 500,
        arrival_s=0.0,
        expected_output=300,
        ttft_target_s=0.5,
        chains={NUMERICS: chain},
    )


class Times(NamedTuple):
    """Microseconds of each decision."""

    cpu: list[float]
    wall: list[float]


def timed(
    act: Callable[[Ticket], object],
    asked: list[Ticket],
    decisions: int,
    before: Callable[[Ticket], object] = lambda it: None,
) -> Times:
    """What an act costs with one request after another, less what reading the clock costs.

    `before`: what has been done with the request, and does not count.
    """
    cpu, wall = [], []
    empty = clock_us()
    for number in range(decisions):
        it = asked[number % len(asked)]
        before(it)
        wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        act(it)
        cpu.append(max(0.0, (time.thread_time_ns() - cpu_ns) / 1e3 - empty))
        wall.append((time.perf_counter_ns() - wall_ns) / 1e3)
    return Times(cpu, wall)


def clock_us() -> float:
    """CPU time between two readings of the CPU clock."""
    pairs = [(time.thread_time_ns(), time.thread_time_ns()) for _ in range(200)]
    return float(np.median([after - before for before, after in pairs])) / 1e3


def decision_rows(pool: Pool, fleet: Fleet, keepers: str, draw: Draw, args: argparse.Namespace) -> list[Row]:
    """One pool, one way of keeping the prompts."""
    asked, placement = tickets(fleet, keepers, draw), Placement()

    def choose(it: Ticket) -> Choice:
        return placement.choose(it, fleet, fleet.hits(it.chains), 0.0)

    def decide(it: Ticket) -> None:
        placement.book(choose(it), it, fleet, 0.0)

    def walk(it: Ticket) -> object:
        return fleet.hits(it.chains)

    assert all(fleet.hits(it.chains).max() == CHAIN for it in asked), "every block is hit"
    times = {
        "decision": [timed(decide, asked, args.decisions, walk) for _ in range(args.repeats)],
        "first_look_decision": [timed(decide, asked, args.decisions) for _ in range(args.repeats)],
        "walk": [timed(walk, asked, args.decisions, walk) for _ in range(args.repeats)],
        "first_look_walk": [timed(walk, asked, args.decisions) for _ in range(args.repeats)],
    }
    case = f"{pool.workers} workers, {keepers}"
    return [each for name, them in times.items() for each in rows_of(case, name, pool, keepers, them)]


def rows_of(case: str, name: str, pool: Pool, keepers: str, times: list[Times]) -> list[Row]:
    """Medians and tails; the aim is the median's of a decision in CPU time."""
    cpu = [float(np.median(each.cpu)) for each in times]
    aimed = keepers != STEPS and name.endswith("decision")
    met = bool(np.median(cpu) <= pool.most_us) if aimed else None
    return [
        row(case, f"{name}_cpu", "µs", cpu, aim=f"<= {pool.most_us:g}" if aimed else None, met=met),
        row(case, f"{name}_cpu_p99", "µs", [float(np.percentile(each.cpu, 99)) for each in times]),
        row(case, f"{name}_wall", "µs", [float(np.median(each.wall)) for each in times]),
        row(case, f"{name}_wall_p99", "µs", [float(np.percentile(each.wall, 99)) for each in times]),
    ]


def memory_rows(args: argparse.Namespace) -> list[Row]:
    """Bytes a block, everything counted that Python and numpy allocate for the index."""
    cases = {
        "32 workers, each its own blocks": (32, 1),
        "1000 workers, each its own blocks": (1000, 1),
        "1000 workers, chains of 16 blocks on random threes": (1000, 3),
    }
    rows = []
    for case, (workers, keepers) in cases.items():
        weights = memory(workers, keepers)
        for metric, value in (("bytes_a_block", weights[-1]), ("most_bytes_a_block", max(weights))):
            rows.append(row(case, metric, "B", [value], aim="<= 100", met=value <= 100))
    return rows


def memory(workers: int, keepers: int) -> list[float]:
    """Bytes a distinct block, time and again while the index grows from 20,000 to 160,000 blocks."""
    draw, found = Draw(), list[float]()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = PrefixIndex()
    for number in range(workers):
        index.join(f"w{number}", 1 << 20)
    for number in range(10_000):
        chain = draw.digests(16)
        for at in draw.several(keepers, workers):
            index.stored(f"w{at}", chain)
        if number % 64 == 0 and len(index) > 20_000:
            found.append((tracemalloc.get_traced_memory()[0] - before) / len(index))
    tracemalloc.stop()
    return found


def operation_rows(args: argparse.Namespace) -> list[Row]:
    """How fast events go in, and the longest that one call holds the router up."""
    found = [operations() for _ in range(args.repeats)]
    return [row("index of 300,000 blocks", *name, [each[name] for each in found]) for name in found[0]]


def operations() -> dict[tuple[str, str], float]:
    """Blocks a second of CPU time by kind of call; pauses in milliseconds of CPU time."""
    draw, index = Draw(), PrefixIndex()
    for number in range(50):
        index.join(f"w{number}", 1 << 20)
    fill = [(f"w{number % 50}", draw.digests(4096)) for number in range(70)]
    few = [(f"w{number % 50}", draw.digests(8)) for number in range(2000)]
    snapshot = spans(lambda each: index.stored(*each), fill)
    stored = spans(lambda each: index.stored(*each), few)
    matched = spans(lambda each: index.match(each[1][:CHAIN]), fill * 10)
    removed = spans(lambda each: index.removed(*each), few)
    left = spans(index.leave, [f"w{number}" for number in range(45)])
    ticks = spans(index.expire, [0.1 * number for number in range(200)])
    return {
        ("stored_8_a_call", "blocks/s"): 8 * len(few) / sum(stored),
        ("removed_8_a_call", "blocks/s"): 8 * len(few) / sum(removed),
        ("stored_4096_a_call", "blocks/s"): 4096 * len(fill) / sum(snapshot),
        ("matched_512_a_call", "blocks/s"): CHAIN * len(fill) * 10 / sum(matched),
        ("longest_call_of_4096", "ms"): 1e3 * max(snapshot),
        ("longest_call_of_8", "ms"): 1e3 * max(stored + removed),
        ("longest_tick_after_leaves", "ms"): 1e3 * max(ticks),
        ("longest_leave", "ms"): 1e3 * max(left),
    }


def spans(act: Callable[[T], object], inputs: Sequence[T]) -> list[float]:
    """CPU seconds of each call."""
    found = []
    for each in inputs:
        start_s = time.thread_time()
        act(each)
        found.append(time.thread_time() - start_s)
    return found


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decisions", type=int, default=600, help="decisions of each repeat")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: list[Row] = []
    for pool in POOLS:
        draw = Draw()
        fleet = fleet_of(pool, draw)
        for keepers in (*KEEPERS, STEPS):
            rows += decision_rows(pool, fleet, keepers, draw, args)
    rows += operation_rows(args) + memory_rows(args)
    record("decision-cost", rows, packages=["numpy"], results=args.results)


if __name__ == "__main__":
    main()
