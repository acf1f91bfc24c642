"""Whether what a model with real weights wrote reads like text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

LETTERS = 0.6  # of the characters, letters and spaces, at least
WORD = (2.0, 12.0)  # mean length of a word


def unreadable(texts: Sequence[str]) -> Iterator[str]:
    """What is wrong with answers in a natural language, taken together."""
    text = " ".join(texts)
    words = text.split()
    if "\ufffd" in text:
        yield "broken characters"
    if not words:
        yield "no words"
        return
    if sum(each.isalpha() or each.isspace() for each in text) < LETTERS * len(text):
        yield "more signs than letters"
    if not WORD[0] <= statistics.mean(map(len, words)) <= WORD[1]:
        yield f"words of {statistics.mean(map(len, words)):.1f} letters"
