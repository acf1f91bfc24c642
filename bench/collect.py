"""Collects bench/results/*.json into docs/results.md: `make results`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.results_contract import RESULTS, ContractError, Result, Row, aim, peer, quantity, read, spread

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
LONG = 500  # rows: nobody reads so many that nothing is asked of
HEAD = """# Results

Collected by `make results` from `bench/results/*.json`; nothing here is written by hand. A value is the
median of its repeats. Compare figures within one section: another section is another machine or hour.
"""


def collect(results: Path) -> str:
    """The page. Raises ContractError."""
    found = [read(path) for path in sorted(results.glob("*.json"))]
    return "\n".join([HEAD, *_summary(found), *(line for result in found for line in _section(result))])


def _summary(found: list[Result]) -> Iterator[str]:
    rows = [row for result in found for row in result.rows]
    aims = [row for row in rows if row.aim is not None]
    missed = [(result, row) for result in found for row in result.missed]
    yield f"{len(rows)} rows of {len(found)} benchmarks; {len(aims)} aims, {len(missed)} missed.\n"
    if missed:
        yield "| missed | case | value | aim |\n|---|---|---|---|"
        yield from (
            _line(f"[{result.name}](#{result.name})", row.case, quantity(row.value, row.unit), row.aim or "")
            for result, row in missed
        )
        yield ""


def _section(result: Result) -> Iterator[str]:
    machine = result.machine
    versions = "".join(f", {package} {version}" for package, version in sorted(result.versions.items()))
    yield f"## {result.name}\n\n`{result.command}`, {result.when}, commit {result.commit}  "
    yield f"{machine.cpu}, {machine.cores} cores, {machine.gpu or 'no GPU'}, "
    yield f"Python {machine.python}{versions}\n"
    if len(result.rows) > LONG and not any(row.aim for row in result.rows):
        yield f"{len(result.rows)} rows, held against no aim: `bench/results/{result.name}.json`.\n"
        return
    yield "| case | metric | value | spread | peer | aim |\n|---|---|---:|---|---|---|"
    yield from map(_row, result.rows)
    yield ""


def _row(row: Row) -> str:
    return _line(row.case, row.metric, quantity(row.value, row.unit), spread(row), peer(row), aim(row))


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    """Writes the page, or says what breaks the contract."""
    argparse.ArgumentParser(description="Collects bench/results/*.json into docs/results.md.").parse_args()
    try:
        PAGE.write_text(collect(RESULTS))
    except ContractError as error:
        print(f"bench/results: {error}", file=sys.stderr)
        return 1
    print(f"wrote {PAGE.relative_to(PAGE.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
