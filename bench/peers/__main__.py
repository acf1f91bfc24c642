"""The same work on other engines and on ours.

    python -m bench.peers install [ENVIRONMENT …]      all without a name; again: only what changed
    python -m bench.peers run [--cases KEY …] [--repeats 5]

A run interleaves all peers of a case, repeat by repeat, prints one table and writes peers.json: into
bench/results when all cases ran, else into the folder. Environments, models and logs lie under --folder,
outside of the repository.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.peers.cases import CASES, chosen
from bench.peers.environments import InstallFailed, default_folder, install
from bench.peers.figures import rows_of
from bench.peers.peers import ENVIRONMENTS
from bench.peers.rounds import house, run_case, to_stderr
from bench.peers.table import table
from bench.results_contract import RESULTS, record

_NAME = "peers"


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 when something failed."""
    given = _parser().parse_args(arguments)
    try:
        done: int = given.command(given)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return done


def _install(given: argparse.Namespace) -> int:
    failed = 0
    for environment in given.environments or ENVIRONMENTS:
        try:
            install(environment, given.folder)
        except InstallFailed as error:
            print(f"{environment}: {error}", file=sys.stderr)
            failed = 1
    return failed


def _run(given: argparse.Namespace) -> int:
    logs = given.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with house(given.folder, logs, to_stderr) as home:
        measured = [(case, run_case(case, given.repeats, home)) for case in chosen(given.cases)]
    print(table(measured))
    for failure in home.failures:
        print(f"left out: {failure}")
    rows = [row for case, runs in measured for row in rows_of(case, runs)]
    if rows:
        results = given.results or (given.folder if given.cases and given.name == _NAME else RESULTS)
        record(given.name, rows, packages=["headrace", "torch"], results=results, quiet=True)
        print(f"wrote {results / given.name}.json")
    return 1 if home.failures or not rows else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    commands = parser.add_subparsers(required=True)
    installing = commands.add_parser("install", help="make the peers' environments")
    installing.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help=", ".join(ENVIRONMENTS))
    installing.set_defaults(command=_install)
    running = commands.add_parser("run", help="measure")
    keys = [case.key for case in CASES]
    running.add_argument("--cases", nargs="+", default=[], metavar="KEY", help=", ".join(keys))
    running.add_argument("--repeats", type=int, default=5)
    running.add_argument("--name", default=_NAME, help="of the file; default: %(default)s")
    running.add_argument(
        "--results",
        type=Path,
        help=f"its directory; default: {RESULTS}, of some cases without a name --folder",
    )
    running.set_defaults(command=_run)
    for each in (installing, running):
        each.add_argument("--folder", type=Path, default=default_folder(), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
