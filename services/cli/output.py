"""What a person sees: colours and tables on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_WIDEST = 1 << 16  # characters


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    stream: IO[str] | None = None,
    *,
    spare: Sequence[str] = (),
) -> None:
    """A table: drawn by rich on a terminal, else one line a row with tabs between.

    Args:
        spare: columns that a terminal too narrow for all goes without, in this order.
    """
    out = stream or sys.stdout
    texts = [[str(cell) for cell in row] for row in rows]
    if not out.isatty():
        for row in [[name.lower() for name in columns], *texts]:
            print("\t".join(row), file=out, flush=True)
        return
    from rich.console import Console

    console = Console(file=out, highlight=False)
    unbounded = console.options.update(width=_WIDEST)
    gone: list[str] = []
    for name in ("", *spare):
        gone.append(name)
        drawn = _drawn(columns, texts, gone)
        if fits := console.measure(drawn, options=unbounded).maximum <= console.width:
            break
    for column in drawn.columns:
        column.no_wrap = fits  # else it is broken, not lost
    console.print(drawn)


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], gone: Sequence[str]) -> Table:
    """The table without the columns `gone`."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    kept = [index for index, name in enumerate(columns) if name not in gone]
    for index in kept:
        drawn.add_column(columns[index], overflow="fold")
    for row in rows:
        drawn.add_row(*(row[index] for index in kept))
    return drawn


def json_line(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(value, ensure_ascii=False))


def note(text: str, *, dim: bool = False) -> None:
    """A line about the work, not its result: on standard error, so that results can be piped."""
    if dim and sys.stderr.isatty():
        text = f"\x1b[2m{text}\x1b[0m"
    print(text, file=sys.stderr, flush=True)
