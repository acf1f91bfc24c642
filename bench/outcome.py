"""What one run of an engine came to: rates, latencies, and parts of the machine's ceilings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bench.arithmetic import ModelSize, Useful, bytes_read, flops
from bench.ceilings import Ceilings
from bench.drive import Ran
from bench.results_contract import Row, row
from bench.tracks import Track, gaps_s, percentile, tpots_s, ttfts_s

_PRODUCT_WEIGHT_BYTES = {"int8": 1.0, "bfloat16": 2.0, "float32": 4.0}
_KV_VALUE_BYTES = {"bfloat16": 2.0, "float32": 4.0}


class Outcome(NamedTuple):
    """Of one run of one case; None where it cannot be known."""

    tokens_per_s: float  # output
    tokens_per_core_s: float  # of the engine's process
    tokens_per_core_s_all: float  # with the process that drives it
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    steps: float
    preemptions: float
    mbu: float | None
    mfu: float | None


UNITS = {
    "tokens_per_s": "tok/s",
    "tokens_per_core_s": "tok/core-s",
    "tokens_per_core_s_all": "tok/core-s",
    "steps": "",
    "preemptions": "",
    "mbu": "%",
    "mfu": "%",
}


class Machine(NamedTuple):
    """What parts of ceilings are computed from."""

    size: ModelSize
    ceilings: Ceilings
    weight_bytes: float  # of one weight of a product
    kv_bytes: float  # of one value


def machine_of(
    dtype: str, kv_dtype: str, size: ModelSize | None, before: Ceilings | None, after: Ceilings | None
) -> Machine | None:
    """With the better of two measurements; None where nothing is computed. `dtype` is that of products."""
    if size is None or before is None or after is None:
        return None
    best = Ceilings(*(max(pair) for pair in zip(before, after, strict=True)))
    return Machine(size, best, _PRODUCT_WEIGHT_BYTES[dtype], _KV_VALUE_BYTES[kv_dtype])


def outcome_of(ran: Ran, machine: Machine | None) -> Outcome:
    """What a run came to."""
    tracks, spent = ran.tracks, ran.spent
    outputs = sum(len(track.token_s) for track in tracks)
    gaps = gaps_s(tracks)
    return Outcome(
        tokens_per_s=outputs / spent.wall_s,
        tokens_per_core_s=outputs / max(spent.engine_cpu_s, 1e-9),
        tokens_per_core_s_all=outputs / max(spent.engine_cpu_s + spent.own_cpu_s, 1e-9),
        ttft_p50_ms=1e3 * percentile(ttfts_s(tracks), 50),
        ttft_p99_ms=1e3 * percentile(ttfts_s(tracks), 99),
        tpot_p50_ms=1e3 * percentile(tpots_s(tracks), 50),
        itl_p50_ms=1e3 * percentile(gaps, 50),
        itl_p99_ms=1e3 * percentile(gaps, 99),
        steps=float(ran.steps),
        preemptions=float(sum(_usage(track)[3] for track in tracks)),
        mbu=None if machine is None else 100.0 * _bandwidth_part(ran, machine),
        mfu=None if machine is None else 100.0 * _flops_part(ran, machine),
    )


def rows_of(case: str, outcomes: list[Outcome]) -> Iterator[Row]:
    """The table's rows of one case."""
    for metric in Outcome._fields:
        samples = [value for each in outcomes if (value := getattr(each, metric)) is not None]
        if samples:
            yield row(case, metric, UNITS.get(metric, "ms") or "a run", samples)


def _bandwidth_part(ran: Ran, machine: Machine) -> float:
    read = bytes_read(machine.size, _useful(ran.tracks), ran.steps, machine.weight_bytes, machine.kv_bytes)
    return read / ran.spent.wall_s / machine.ceilings.bytes_per_s


def _flops_part(ran: Ran, machine: Machine) -> float:
    return flops(machine.size, _useful(ran.tracks)) / ran.spent.wall_s / machine.ceilings.flops_per_s


def _useful(tracks: list[Track]) -> Useful:
    return Useful.of(_usage(track)[:3] for track in tracks)


def _usage(track: Track) -> tuple[int, int, int, int]:
    """Prompt, cached, output tokens, preemptions."""
    assert track.finished is not None
    usage = track.finished.usage
    return usage.prompt_tokens, usage.cached_tokens, usage.output_tokens, usage.preemptions
