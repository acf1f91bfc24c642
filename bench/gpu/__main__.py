"""A GPU, measured: python -m bench.gpu PART…, or `bash bench/gpu.sh PART…` where nothing is installed.

    check      every kernel against fp32 arithmetic, the runner against the CPU's; exits with 1 on a failure
    kernels    each kernel in GB/s and TFLOP/s against ceilings measured beside
    engine     production's scheduler and runner with random weights, against rooflines and aims
    peers      continuous batching of transformers on the same shapes, ours beside it

Each takes at most `--minutes`, runs alone and writes `gpu-PART.json` by the results contract. Needed are
torch >= 2.11, triton and numpy, for peers also transformers; nothing is downloaded, and the card's settings
stay as they are.
`--dry` runs everything on the CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from bench.gpu.place import NoDevice, OutOfTime, Place
from bench.results_contract import RESULTS, Row, record

PARTS = ("check", "kernels", "engine", "peers")
_PACKAGES = ("torch", "triton", "numpy", "transformers")


def run(part: str, place: Place, results: Path) -> list[Row]:
    """One part; what was measured before a failure is kept. Returns its rows."""
    rows: list[Row] = []
    try:
        for each in _rows(part, place):
            rows.append(each)
            if part != "check":  # it tells more itself
                print(f"    {each.case}: {each.metric} {each.value:.4g} {each.unit}", flush=True)
    except OutOfTime as error:
        print(f"{part}: time is up, {error}", flush=True)
    finally:
        if rows:
            record(f"gpu-{part}", rows, _installed(), results, quiet=part == "check")
    return rows


def _rows(part: str, place: Place) -> Iterator[Row]:
    print(f"{part}: {place.card()}", flush=True)
    measured: Iterator[Row] = importlib.import_module(f"bench.gpu.{part}").measure(place)
    return measured


def _installed() -> list[str]:
    return [name for name in _PACKAGES if _has(name)]


def _has(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> int:
    """Run the parts, one after the other."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench.gpu"
    )
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    options.add_argument("--minutes", type=float, default=8.5, help="that a part may take")
    options.add_argument("--results", type=Path, help=f"where the JSON goes; unset: {RESULTS}")
    options.add_argument("--dry", action="store_true", help="on the CPU, with tiny sizes")
    given = options.parse_args()
    if wrong := set(given.parts) - set(PARTS):
        options.error(f"unknown parts {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    if given.dry and given.results is None:
        options.error("figures of a dry run mean nothing: name a directory of their own with --results")
    if given.dry:
        torch.set_num_threads(1)
    failed: list[str] = []
    for part in given.parts or PARTS:
        try:
            place = Place.make(dry=given.dry, minutes=given.minutes)
        except NoDevice as error:
            options.exit(2, f"{options.prog}: {error}\n")
        rows = run(part, place, given.results or RESULTS)
        if part == "check":
            failed = [each.case for each in rows if each.met is False]
            print(f"{len(rows)} checks, {len(failed)} failed", *failed, sep="\n  ", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
