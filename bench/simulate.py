"""Our policies and those of others over public traces and synthetic loads, in virtual time.

    python -m bench.simulate routing|overload|fairness|hetero|scale|ablation|purposes|all
        [--seeds 5] [--trace AZURE.csv] [--mooncake TRACE.jsonl] [--size 1.0] [--jobs 2] [--kept FOLDER]

The router's policy, the worker's scheduler and its credit book are the production objects; devices, network
and clients are simulated (bench/sim). Writes bench/results/simulate-NAME.json, and a plot beside it where
matplotlib is installed (the extra `bench`). --size 0.2 is a quick look with a fifth of the requests: what is
not of full size, or has other seeds, goes to a new temporary folder, unless --results names another. All
suites with five seeds are hours of CPU: --kept keeps every run in a folder, where it is found again as long
as the code that it goes through has not changed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.results_contract import RESULTS, record
from bench.sim import loads, plots, tables
from bench.sim.commands import SUITES
from bench.sim.experiments import Options
from bench.sim.kept import Kept
from bench.sim.play import Played, Table, play_all
from bench.sim.suites import Suite

SEEDS = 5
FULL_SIZE = 1.0


def say(played: Played) -> None:
    """One line a run."""
    whole, task = played.parts["all"], played.task
    print(
        f"{task.experiment} | {task.contender} | seed {task.seed}: TTFT mean {whole.ttft_mean:.3f} "
        f"p99 {whole.ttft_p99:.2f} s, TPOT p99 {1e3 * whole.tpot_p99:.0f} ms, E2E {whole.e2e_mean:.2f} s, "
        f"goodput {whole.goodput:.1f} %, hit {whole.hit:.0f} %, refused {whole.refused} "
        f"({played.cpu_s:.1f} s CPU)",
        flush=True,
    )


def run(
    suite: Suite, options: Options, seeds: int, jobs: int, results: Path, kept: Path | None = None
) -> None:
    """Plays a suite, prints its table, writes its result and its plot."""
    began_s = time.monotonic()
    make = partial(suite.make, options)
    keeper = None if kept is None else Kept(kept, suite.name, options)
    table = Table(play_all(make, seeds, jobs, keeper), say)
    name = f"simulate-{suite.name}"
    match = make()
    rows = list(suite.rows(table, match))
    shown = suite.lines(table, match) if suite.lines else tables.lines(table, match, suite.columns)
    print("\n".join([*shown, "", *tables.aims(rows)]))
    record(name, rows, ["numpy"], results, quiet=True)
    print(f"{time.monotonic() - began_s:.0f} s, {table.cpu_s:.0f} s CPU, {results / name}.json")
    if suite.plot and plots.draw(table, match.experiments, suite.plot, results / f"{name}.png") is None:
        print("no plot: matplotlib is not installed (the extra `bench`)")


def results_folder(size: float, seeds: int, chosen: Path | None = None) -> Path:
    """Where results go: only full runs are figures of this repository, unless somebody says otherwise."""
    if chosen is not None:
        return chosen
    if size == FULL_SIZE and seeds == SEEDS:
        return RESULTS
    return Path(tempfile.mkdtemp(prefix="headrace-quick-look-"))


def main() -> None:
    """Play what was asked for."""
    parser = argparse.ArgumentParser(description="Scheduling policies over traces, in virtual time.")
    parser.add_argument("suite", choices=[*SUITES, "all"])
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"runs of each load and policy; default: {SEEDS}"
    )
    excerpt = "default: the excerpt in bench/data"
    parser.add_argument(
        "--trace", type=Path, default=loads.AZURE_EXCERPT, help=f"Azure chats, CSV; {excerpt}"
    )
    parser.add_argument(
        "--mooncake", type=Path, default=loads.MOONCAKE_EXCERPT, help=f"Mooncake JSONL; {excerpt}"
    )
    parser.add_argument(
        "--size",
        type=float,
        default=FULL_SIZE,
        help="multiplies the requests of every load; 0.05: a quick look",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes; default: 1")
    parser.add_argument("--results", type=Path, help=f"default: {RESULTS} of a full run, else a new folder")
    parser.add_argument("--kept", type=Path, help="folder of runs that are not played again")
    given = parser.parse_args()
    options = Options(azure=given.trace, mooncake=given.mooncake, size=given.size)
    results = results_folder(given.size, given.seeds, given.results)
    for suite in SUITES.values() if given.suite == "all" else [SUITES[given.suite]]:
        run(suite, options, given.seeds, given.jobs, results, given.kept)


if __name__ == "__main__":
    main()
