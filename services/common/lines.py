"""Lines for people, where there is no log: engines run without its library, on a GPU host's own Python."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(line: str) -> None:
    """Writes a line to standard error; it is lost where it cannot be written."""
    with suppress(OSError):
        print(line, file=sys.stderr)
