"""Long texts in pieces that have together the ids of the whole: see `services.common.text.byte_level`."""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE_CHARS = 16 << 10
"""Least characters of a piece: cutting costs nothing there, and what is too long is soon known to be."""
_CUT = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")


def pieces(text: str) -> Iterator[str]:
    """Cuts between an ASCII letter and a space before an ASCII letter; one piece where there is none."""
    start = 0
    while cut := _CUT.search(text, start + PIECE_CHARS):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
