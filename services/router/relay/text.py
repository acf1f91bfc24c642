"""One stream's text: ids in, certain text out, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.common.text import IncrementalDecoder, StopMatcher, TokenTable


class Read(NamedTuple):
    """What some ids led to."""

    taken: int
    """Ids that belong to the output; fewer than given when a stop string was complete."""
    text: str
    """Text that is certain now."""
    stop: str | None
    """The stop string that ended the output."""


class TextReader:
    """Decodes the ids of one stream. A stop string counts once `min_tokens` ids are out."""

    def __init__(self, table: TokenTable, stops: Sequence[str], min_tokens: int = 0) -> None:
        decoder = IncrementalDecoder(table)
        self._push, self._finish = decoder.push, decoder.finish
        self.decode: Callable[[int], str] | None = decoder.push if not stops else None
        """The text of one more id; None: there are stop strings, and `read` is to be asked."""
        self._unmatched = max(min_tokens - 1, 0) if stops else 0
        self._matcher = StopMatcher(stops, next_index=self._unmatched) if stops else None

    def read(self, ids: Sequence[int]) -> Read:
        """Takes the next ids."""
        if self._matcher is None:
            push = self._push
            return Read(len(ids), push(ids[0]) if len(ids) == 1 else "".join(map(push, ids)), None)
        return self._read_to_stop(ids, self._matcher)

    def finish(self) -> Read:
        """Takes the end of the stream: what was held back is certain now, or completes a stop string."""
        rest = self._finish()
        if self._matcher is None or self._unmatched:
            return Read(0, rest, None)
        outcome = self._matcher.finish(rest)
        return Read(0, outcome.text, outcome.match.text if outcome.match else None)

    def _read_to_stop(self, ids: Sequence[int], matcher: StopMatcher) -> Read:
        texts = []
        for taken, token_id in enumerate(ids, start=1):
            text = self._push(token_id)
            if self._unmatched:
                self._unmatched -= 1
                texts.append(text)
                continue
            outcome = matcher.push(text)
            texts.append(outcome.text)
            if outcome.match is not None:
                return Read(taken, "".join(texts), outcome.match.text)
        return Read(len(ids), "".join(texts), None)
