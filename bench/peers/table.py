"""The table for people: a line a peer, and under each case what was aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from bench.peers.cases import Case
from bench.peers.figures import Runs, ratio_rows
from bench.results_contract import spread

HEAD = ("", "tok/s", "least … greatest", "tok/core-s", "TTFT ms", "TPOT ms", "repeats alike")
Measured = Sequence[tuple[Case, Mapping[str, Runs]]]


def table(measured: Measured) -> str:
    """Cases in their order; medians of the repeats."""
    lines = [line for case, runs in measured for line in _case(case, runs)]
    widths = [
        max(len(line[column]) for line in [HEAD, *lines] if len(line) > 1) for column in range(len(HEAD))
    ]
    return "\n".join(_laid_out(line, widths) for line in [HEAD, *lines])


def _case(case: Case, runs: Mapping[str, Runs]) -> Iterator[tuple[str, ...]]:
    yield (f"-- {case.title}",)
    for entry in case.entries:
        if (found := runs.get(entry.peer.name)) is not None:
            yield _peer(found)
    for ratio in ratio_rows(case, runs):
        what = ratio.case.rpartition(": ")[2]
        met = "met" if ratio.met else "MISSED"
        yield (f"   {what}: {ratio.value:.2f} ({spread(ratio)}), aim {ratio.aim}: {met}",)


def _peer(runs: Runs) -> tuple[str, ...]:
    speed = runs.samples("tokens_per_s")
    medians = (_median(runs.samples(metric)) for metric in ("tokens_per_cpu_s", "ttft_ms", "tpot_ms"))
    alike = "-" if runs.same is None else f"{runs.same:.0%}"
    return (runs.title, _median(speed), f"{min(speed):.0f} … {max(speed):.0f}", *medians, alike)


def _median(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):.1f}" if samples else "-"


def _laid_out(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [line[0].ljust(widths[0]) if len(line) > 1 else line[0]]
    return "  ".join(cells + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)])
