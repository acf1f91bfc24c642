"""One contender under one load: CPU time of one process by token, and what its clients saw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple

from bench.relay.clients import Seen, Ways, in_turn
from bench.relay.processes import Child
from services.cli.bench.stats import quantile

_POLL_S = 0.01


class Load(NamedTuple):
    """What is sent to every contender."""

    streams: int = 64
    tokens: int = 128  # of each request
    rounds: int = 2  # requests of each stream, one after the other
    window_s: float = 2.0  # in which only tokens flow
    step_s: float = 0.01
    calls: int = 600  # for one token
    at_once: int = 32  # of these calls
    settle_s: float = 0.2  # before what is measured
    quiet_s: float = 1.0  # longest wait for a quiet machine before each contender


@dataclass(frozen=True)
class Contender:
    """Who is measured: the CPU time of `child` while `connect`'s ways are used."""

    name: str
    children: tuple[Child, ...]
    connect: Callable[[], AbstractAsyncContextManager[Ways]]

    def cpu_s(self) -> float:
        """Of all its processes."""
        return sum(each.cpu_s() for each in self.children)


class Cost(NamedTuple):
    """Of one run of one contender. CPU in microseconds."""

    cpu_us: float  # a token, requests' beginnings and ends included
    flow_cpu_us: float  # a token, while nothing begins or ends
    tokens_a_message: float
    gap_p50_ms: float
    gap_p99_ms: float
    first_p50_ms: float
    call_cpu_us: float | None = None  # a call for one token


async def measure(contender: Contender, load: Load) -> Cost:
    """One run: whole requests, then flow alone, then calls for one token."""
    async with contender.connect() as ways:
        await ways.stream(2, Seen())  # connected
        await asyncio.sleep(load.settle_s)
        seen, spent_s = await _whole(contender, ways, load)
        flow_us = await _flow(contender, ways, load)
        call_us = await _calls(contender, ways, load) if ways.once is not None else None
    gaps, first = sorted(seen.gaps_s), sorted(seen.first_s)
    return Cost(
        cpu_us=1e6 * spent_s / seen.tokens,
        flow_cpu_us=flow_us,
        tokens_a_message=seen.tokens / seen.messages,
        gap_p50_ms=1e3 * quantile(gaps, 0.5),
        gap_p99_ms=1e3 * quantile(gaps, 0.99),
        first_p50_ms=1e3 * quantile(first, 0.5),
        call_cpu_us=call_us,
    )


async def _whole(contender: Contender, ways: Ways, load: Load) -> tuple[Seen, float]:
    seen = Seen()

    async def client(number: int) -> None:
        await asyncio.sleep(load.step_s * load.tokens * number / load.streams / 8)
        for _ in range(load.rounds):
            await ways.stream(load.tokens, seen)

    before_s = contender.cpu_s()
    await asyncio.gather(*(client(number) for number in range(load.streams)))
    return seen, contender.cpu_s() - before_s


async def _flow(contender: Contender, ways: Ways, load: Load) -> float:
    """CPU-µs a token in the middle of streams that all run."""
    seen = Seen()
    tokens = int((load.window_s + 6 * load.settle_s) / load.step_s)
    running = [asyncio.create_task(ways.stream(tokens, seen)) for _ in range(load.streams)]
    try:
        while seen.begun < load.streams and not any(each.done() for each in running):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(load.settle_s)
        before_s, had = contender.cpu_s(), seen.tokens
        await asyncio.sleep(load.window_s)
        spent_s, flowed = contender.cpu_s() - before_s, seen.tokens - had
    finally:
        await asyncio.gather(*running)
    return 1e6 * spent_s / flowed


async def _calls(contender: Contender, ways: Ways, load: Load) -> float:
    assert ways.once is not None
    before_s = contender.cpu_s()
    await in_turn(ways.once, load.calls, load.at_once)
    return 1e6 * (contender.cpu_s() - before_s) / load.calls
