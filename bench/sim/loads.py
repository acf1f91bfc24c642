"""Loads: public traces and synthetic ones. A seed draws everything that a trace does not say.

Seeds of a trace are windows of it: each begins somewhere else and goes around.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, pairwise
from pathlib import Path

from bench.scheduler_trace import Arrival, read_trace
from bench.sim.request import Part, SimRequest
from services.worker.scheduler.request import LatencyClass

DATA = Path(__file__).parent.parent / "data"
AZURE_EXCERPT = DATA / "azure_conv_2023_600s.csv"
MOONCAKE_EXCERPT = DATA / "mooncake_synthetic_tail.jsonl"
MOONCAKE_BLOCK = 512
LONGEST = 60_000  # prompt tokens: what is beyond is cut, so that every device of the fleet holds it
LONG_TTFT_S = 5.0  # target where a prompt alone takes a second
_CONTENTS = 128_000  # distinct ids that contents may have
_GROUP_CONTENT, _USER_CONTENT = 1, 10_000  # where shared prefixes' ids begin, and their users'

Load = list[SimRequest]


def key_of(tenant: str) -> bytes:
    """A tenant's key of KV blocks."""
    return blake2b(tenant.encode(), digest_size=32).digest()


@lru_cache
def _azure_rows(path: Path) -> list[Arrival]:
    return read_trace(path)


def azure(path: Path, *, speed: float, count: int, seed: int) -> Load:
    """A window of `count` chat requests of an Azure trace, its times divided by `speed`.

    The trace's rate changes within the hour: windows are stretched to last as long as the first, seed 0's.
    """
    rows = _azure_rows(path)
    start = random.Random(seed).randrange(len(rows)) if seed else 0
    times = _window(rows, start, count)
    stretch = _window(rows, 0, count)[-1] / max(times[-1], 1e-9) / speed
    return [
        _plain(number, at_s * stretch, row.prompt_tokens, row.output_tokens)
        for number, at_s in enumerate(times)
        for row in [rows[(start + number) % len(rows)]]
    ]


def _window(rows: list[Arrival], start: int, count: int) -> list[float]:
    """When the rows from one on come, around the end of the trace, counted from the first of them."""
    lap_s = rows[-1].at_s + 1.0
    places = (divmod(start + number, len(rows)) for number in range(count))
    return [rows[row].at_s + lap * lap_s - rows[start].at_s for lap, row in places]


def _plain(number: int, at_s: float, prompt: int, output: int) -> SimRequest:
    part = Part(1 + number % _CONTENTS, max(1, prompt))
    return SimRequest(number=number, arrival_s=at_s, parts=(part,), output_tokens=max(1, output))


@lru_cache
def _mooncake_rows(path: Path) -> list[tuple[float, int, int, tuple[int, ...]]]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line]
    return [
        (each["timestamp"] / 1000, each["input_length"], each["output_length"], tuple(each["hash_ids"]))
        for each in lines
    ]


def mooncake(path: Path, *, speed: float, count: int, seed: int) -> Load:
    """The last `count` requests of a Mooncake trace in their order; a seed shuffles the gaps between them.

    Prompts are cut to `LONGEST` tokens.
    """
    rows = _mooncake_rows(path)[-count:]
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(rows)]
    draw = random.Random(seed)
    for start in range(0, len(gaps) if seed else 0, 64):
        window = gaps[start : start + 64]
        draw.shuffle(window)
        gaps[start : start + 64] = window
    times = accumulate(gaps, initial=0.0)
    return [
        SimRequest(
            number=number,
            arrival_s=at_s / speed,
            parts=tuple(_mooncake_parts(row[3], min(row[1], LONGEST))),
            output_tokens=max(1, row[2]),
            ttft_target_s=LONG_TTFT_S,
            kv_key=key_of("t0"),
        )
        for number, (at_s, row) in enumerate(zip(times, rows, strict=True))
    ]


def _mooncake_parts(hashes: tuple[int, ...], tokens: int) -> Iterator[Part]:
    for each in hashes:
        yield Part(1 + each % _CONTENTS, min(MOONCAKE_BLOCK, tokens))
        tokens -= MOONCAKE_BLOCK
        if tokens <= 0:
            return


def shared_prefix(
    *,
    rate: float,
    count: int,
    seed: int,
    groups: int = 150,
    users: int = 5,
    system: int = 6144,
    own: int = 1200,
) -> Load:
    """Business to business: groups share a long prefix, each user of a group has a part of its own."""
    draw = random.Random(seed)
    load, at_s = [], 0.0
    for number in range(count):
        at_s += draw.expovariate(rate)
        group, user = draw.randrange(groups), draw.randrange(users)
        parts = (
            Part(_GROUP_CONTENT + group, system),
            Part(_USER_CONTENT + group * users + user, own),
        )
        output = max(1, int(draw.gauss(1000, 100)))
        load.append(
            SimRequest(number=number, arrival_s=at_s, parts=parts, output_tokens=output, kv_key=key_of("t0"))
        )
    return load


def changed(load: Load, change: Callable[[SimRequest, random.Random], SimRequest], seed: int) -> Load:
    """A load with each request changed by a draw of its own."""
    draw = random.Random(seed + 1000)
    return [change(each, draw) for each in load]


def sheddable(load: Load, share: float, seed: int) -> Load:
    """Part of the requests may be shed."""
    return changed(load, lambda each, draw: replace(each, sheddable=draw.random() < share), seed)


def neighbours(load: Load, heavy: float, light: int, seed: int) -> Load:
    """One heavy tenant and `light` light ones that share the rest evenly."""

    def give(each: SimRequest, draw: random.Random) -> SimRequest:
        place = draw.random()
        if place < heavy:
            return replace(each, tenant="heavy")
        return replace(each, tenant=f"light{int((place - heavy) / (1 - heavy) * light)}")

    return changed(load, give, seed)


def weighted_tenants(load: Load, weights: tuple[float, ...], seed: int) -> Load:
    """Tenants `t0`, `t1`, ... that ask in proportion to the weights."""
    names = [f"t{index}" for index in range(len(weights))]
    return changed(load, lambda each, draw: replace(each, tenant=draw.choices(names, weights)[0]), seed)


def mixed(load: Load, seed: int, *, labelled: bool = True) -> Load:
    """60 % interactive, 25 % standard, 15 % batch; unlabelled ones are to be told by how they are asked."""

    def give(each: SimRequest, draw: random.Random) -> SimRequest:
        place = draw.random()
        latency_class = (
            LatencyClass.INTERACTIVE
            if place < 0.60
            else LatencyClass.STANDARD
            if place < 0.85
            else LatencyClass.BATCH
        )
        return replace(
            each,
            latency_class=latency_class if labelled else None,
            streaming=latency_class is LatencyClass.INTERACTIVE,
            deadline_after_s=3600.0 if latency_class is LatencyClass.BATCH else None,
        )

    return changed(load, give, seed)


def bursts(load: Load, seed: int, *, every_s: float = 5.0, size: int = 24, prompt: int = 4096) -> Load:
    """Among a load, every few seconds `size` requests for one new long prompt, all at once."""
    draw = random.Random(seed + 2000)
    last_s = load[-1].arrival_s
    more = []
    for burst in range(int(last_s / every_s)):
        at_s = (burst + draw.random()) * every_s
        parts = (Part(_USER_CONTENT + burst, prompt),)
        for _ in range(size):
            more.append(
                SimRequest(
                    number=0,
                    arrival_s=at_s,
                    parts=parts,
                    output_tokens=draw.randint(50, 300),
                    kv_key=key_of("t0"),
                )
            )
    merged = sorted([*load, *more], key=lambda each: each.arrival_s)
    return [replace(each, number=number) for number, each in enumerate(merged)]
