"""How soon a prompt is answered whose beginning is in KV memory, and how soon when nothing of it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bench.drive import Engine, Flight
from bench.tracks import Track
from bench.workload import Job, Lengths, Work, offline
from services.worker.scheduler.request import LatencyClass

_OWN_TOKENS = 64  # after the common prefix


class PrefixHit(NamedTuple):
    """Of one pair of requests."""

    cold_ms: float  # TTFT
    hit_ms: float
    hit_to_cold: float


async def hit(engine: Engine, *, prefix_tokens: int, seed: int) -> PrefixHit:
    """One pair, each alone: the same prefix under a key of its own, then another question after it."""
    work = Work(Lengths(prefix_tokens, prefix_tokens), Lengths(1, 1), engine.description.vocab_size)
    prefix = offline(work, 1, seed, LatencyClass.INTERACTIVE)[0]
    key = seed.to_bytes(32, "little")
    cold, warm = [await _alone(engine, _question(prefix, number, seed), key) for number in (1, 2)]
    assert cold.finished is not None
    assert warm.finished is not None
    if cold.finished.usage.cached_tokens or warm.finished.usage.cached_tokens < prefix_tokens:
        raise RuntimeError(f"found of the first {cold.finished.usage}, of the second {warm.finished.usage}")
    return PrefixHit(1e3 * cold.ttft_s, 1e3 * warm.ttft_s, warm.ttft_s / cold.ttft_s)


def _question(prefix: Job, number: int, seed: int) -> Job:
    random = np.random.default_rng((seed, number))
    own = random.integers(3, int(prefix.prompt.max()) + 1, _OWN_TOKENS, np.int32)
    return prefix._replace(prompt=np.concatenate([prefix.prompt, own]))


async def _alone(engine: Engine, job: Job, key: bytes) -> Track:
    flight = Flight(engine)
    track = flight.submit(job, kv_key=key)
    await flight.until(lambda: not flight.open)
    return track
