"""What a person sees: colours and tables on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], stream: IO[str] | None = None) -> None:
    """A table: drawn by rich on a terminal, else one line a row with tabs between."""
    out = stream or sys.stdout
    texts = [[str(cell) for cell in row] for row in rows]
    if not out.isatty():
        for row in [[name.lower() for name in columns], *texts]:
            print("\t".join(row), file=out, flush=True)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        drawn.add_column(name, overflow="fold")
    for row in texts:
        drawn.add_row(*row)
    Console(file=out, highlight=False).print(drawn)


def json_line(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(value, ensure_ascii=False))


def note(text: str, *, dim: bool = False) -> None:
    """A line about the work, not its result: on standard error, so that results can be piped."""
    if dim and sys.stderr.isatty():
        text = f"\x1b[2m{text}\x1b[0m"
    print(text, file=sys.stderr, flush=True)
