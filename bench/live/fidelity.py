"""How true the simulator is: python -m bench.live.fidelity FILE

FILE is a run of real processes, kept by `python -m bench.live.run`. The same requests at the same times go to
simulated workers, whose steps cost what the real workers thought of theirs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench.live.run import Call, LiveRun
from bench.results_contract import Row, record, row
from bench.sim.contenders import OURS, Contender
from bench.sim.fleet import Fleet, Run
from bench.sim.request import Part, SimRequest

_CALIBRATION = """
kv_tokens = {kv_tokens}
vocab_size = 49152
context_length = 8192
[step]
step_s = {step:.9g}
token_s = {token:.9g}
attention_s = {attention:.9g}
context_s = {context:.9g}
sequence_s = {sequence:.9g}
"""


def replay(live: LiveRun) -> Run:
    """The same requests in virtual time."""
    with tempfile.TemporaryDirectory() as directory:
        devices = []
        for number, terms in enumerate(live.workers):
            path = Path(directory, f"worker-{number}.toml")
            path.write_text(_CALIBRATION.format(kv_tokens=64 * live.blocks, **terms))
            devices.append(str(path.with_suffix("")))
        fleet = Fleet(devices=tuple(devices), max_seqs=live.slots)
        return Contender(OURS).play(
            fleet, [_request(number, call) for number, call in enumerate(live.calls)], 0
        )


def _request(number: int, call: Call) -> SimRequest:
    return SimRequest(
        number=number,
        arrival_s=call.at_s,
        parts=(Part(1 + number, call.prompt_tokens),),
        output_tokens=call.output_tokens,
        max_tokens=call.output_tokens,
    )


def rows(live: LiveRun, played: Run) -> list[Row]:
    """The figures side by side; the real run is the peer."""
    ttft = [each.ttft_s for each in live.calls], [each.ttft_s for each in played.stories]
    e2e = [each.e2e_s for each in live.calls], [each.e2e_s for each in played.stories]
    compared: list[
        tuple[str, tuple[list[float], list[float]], Callable[[list[float]], float], float | None]
    ] = [
        ("TTFT mean", ttft, statistics.fmean, None),
        ("TTFT p50", ttft, statistics.median, None),
        ("TTFT p90", ttft, partial(_percentile, 90), 25.0),
        ("TTFT p99", ttft, partial(_percentile, 99), None),
        ("E2E mean", e2e, statistics.fmean, 10.0),
        ("E2E p90", e2e, partial(_percentile, 90), None),
    ]
    found = []
    for name, (real, simulated), figure, most in compared:
        real_s, simulated_s = float(figure(real)), float(figure(simulated))
        error = 100 * abs(simulated_s - real_s) / real_s
        case = f"{len(live.workers)} CPU workers, {len(live.calls)} requests"
        found.append(
            row(case, name, "ms", [1e3 * simulated_s], peer="real processes", peer_samples=[1e3 * real_s])
        )
        aim = None if most is None else f"<= {most:g}"
        found.append(
            row(case, f"error of {name}", "%", [error], aim=aim, met=None if most is None else error <= most)
        )
    return found


def _percentile(part: float, values: list[float]) -> float:
    return float(np.percentile(values, part))


def main() -> None:
    """Replay, print the table, write the result."""
    options = argparse.ArgumentParser(description="The simulator against a run of real processes.")
    options.add_argument("file", type=Path)
    options.add_argument("--name", default="fidelity", help="of the file in bench/results")
    given = options.parse_args()
    live = LiveRun.read(given.file)
    record(given.name, rows(live, replay(live)), packages=["numpy"])


if __name__ == "__main__":
    main()
