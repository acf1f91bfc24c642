"""What a long batch prompt does to those who are reading: inter-token latencies before, beside and after it.

    streams decode   ──idle──┬──────beside──────┬──idle──
    batch prompt             └─ 4,096 tokens ───┘

Contexts grow while a run lasts, so idle time is taken on both sides.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from bench.drive import Engine, Flight
from bench.tracks import Track, gaps_s, percentile
from bench.workload import Lengths, Work, offline
from services.worker.scheduler.request import LatencyClass

_CHAT_PROMPT = 128
_SETTLED_TOKENS = 16  # of each stream before anything is measured
_PATIENCE_S = 20.0  # a batch prompt that is not computed by then is not computed beside these streams


class Interference(NamedTuple):
    """Of one run; `prompt_rate` is 0 where the prompt was not computed in time."""

    idle_p50_ms: float
    idle_p99_ms: float
    beside_p50_ms: float
    beside_p99_ms: float
    p99_beside_to_idle_p99: float
    p99_beside_to_idle_p50: float
    prompt_rate: float  # tokens a second


UNITS = {"p99_beside_to_idle_p99": "×", "p99_beside_to_idle_p50": "×", "prompt_rate": "tok/s"}


async def interfere(
    engine: Engine,
    *,
    streams: int,
    prompt_tokens: int,
    idle_tokens: int,
    seed: int,
    tpot_target_s: float | None = None,
) -> Interference:
    """One run: so many streams, `idle_tokens` of each on either side. None: the target of the class."""
    flight, vocab = Flight(engine), engine.description.vocab_size
    endless = engine.description.context_length - _CHAT_PROMPT
    chat = Work(Lengths(_CHAT_PROMPT, _CHAT_PROMPT), Lengths(endless, endless), vocab)
    prompt = Work(Lengths(prompt_tokens, prompt_tokens), Lengths(1, 1), vocab)
    readers = [
        flight.submit(job, tpot_target_s=tpot_target_s)
        for job in offline(chat, streams, seed, LatencyClass.INTERACTIVE)
    ]
    began_s = await _more(flight, readers, _SETTLED_TOKENS)
    submitted_s = await _more(flight, readers, idle_tokens)
    guest = flight.submit(offline(prompt, 1, seed + 1, LatencyClass.BATCH)[0])
    await flight.until(lambda: bool(guest.token_s) or time.monotonic() > submitted_s + _PATIENCE_S)
    answered_s = time.monotonic()
    ended_s = await _more(flight, readers, idle_tokens)
    idle = gaps_s(readers, began_s, submitted_s) + gaps_s(readers, answered_s, ended_s)
    beside = gaps_s(readers, submitted_s, answered_s)
    await _end(flight)
    rate = prompt_tokens / guest.ttft_s if guest.token_s else 0.0
    return _outcome(idle, beside, rate)


def _outcome(idle: list[float], beside: list[float], prompt_rate: float) -> Interference:
    idle_p50, idle_p99 = percentile(idle, 50), percentile(idle, 99)
    beside_p50, beside_p99 = percentile(beside, 50), percentile(beside, 99)
    return Interference(
        idle_p50_ms=1e3 * idle_p50,
        idle_p99_ms=1e3 * idle_p99,
        beside_p50_ms=1e3 * beside_p50,
        beside_p99_ms=1e3 * beside_p99,
        p99_beside_to_idle_p99=beside_p99 / idle_p99,
        p99_beside_to_idle_p50=beside_p99 / idle_p50,
        prompt_rate=prompt_rate,
    )


async def _more(flight: Flight, readers: list[Track], tokens: int) -> float:
    """Wait until each has so many tokens more; returns the time."""
    wanted = [len(reader.token_s) + tokens for reader in readers]
    await flight.until(
        lambda: all(len(reader.token_s) >= count for reader, count in zip(readers, wanted, strict=True))
    )
    return time.monotonic()


async def _end(flight: Flight) -> None:
    flight.abort()
    await flight.until(lambda: not flight.open)
