"""Which shapes are captured as graphs, when, and which of them a step runs in.

decodes   1 2 4, multiples of 8 to 128, of 16 to 256, of 32 to 512, of 64 beyond, and all slots
mixed     some hundred tokens; a larger step has enough work to hide the launches behind
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable

from services.worker.engine.torch.cuda.device import Graph
from services.worker.engine.torch.cuda.inputs import Bucket

_AT_START = 4  # times as large is the next bucket that is captured before the first step
_MIXED_AT_START = (1024, 256)
_MIXED = (1024, 768, 512, 384, 256, 128, 64)
_SMALL = 256  # tokens up to which padding costs less than launches do
_LEAST_FILLED = 0.75  # of a larger bucket: else the step runs as it is

Capture = Callable[[Bucket], Graph]


class Graphs:
    """Graphs by bucket. The largest come first: the smaller ones then live in the same memory.

    capture: None where steps cannot be captured: none ever fits then.
    """

    def __init__(self, capture: Capture | None, max_seqs: int, step_tokens: int) -> None:
        self._capture = capture
        self._graphs: dict[Bucket, Graph] = {}
        self._sizes: dict[bool, list[int]] = {True: [], False: []}  # of captured tokens; True: decodes
        self._max_seqs = max_seqs
        mixed = [self._mixed(tokens) for tokens in _MIXED if tokens <= step_tokens]
        decodes = [self._decodes(rows) for rows in decode_sizes(max_seqs)]
        self._later = deque([] if capture is None else [*mixed, *sorted(decodes, key=_by_use)])

    def capture_first(self) -> None:
        """Capture the few that any step needs."""
        for bucket in [each for each in self._later if self._comes_first(each)]:
            self._later.remove(bucket)
            self._add(bucket)

    def capture_next(self) -> bool:
        """Capture one of the others; whether there are more."""
        if self._later:
            self._add(self._later.popleft())
        return bool(self._later)

    def fitting(self, rows: int, tokens: int) -> tuple[Bucket, Graph] | None:
        """The smallest captured bucket for a step; None: it runs as it is."""
        sizes = self._sizes[rows == tokens]
        place = bisect_left(sizes, tokens)
        if place == len(sizes):
            return None
        size = sizes[place]
        if rows != tokens and size > _SMALL and tokens < _LEAST_FILLED * size:
            return None
        bucket = self._decodes(size) if rows == tokens else self._mixed(size)
        return bucket, self._graphs[bucket]

    @property
    def planned(self) -> int:
        """How many there will be."""
        return len(self._graphs) + len(self._later)

    @property
    def captured(self) -> Iterable[Bucket]:
        """What is there."""
        return self._graphs.keys()

    def _add(self, bucket: Bucket) -> None:
        assert self._capture is not None
        self._graphs[bucket] = self._capture(bucket)
        sizes = self._sizes[bucket.decodes]
        sizes.insert(bisect_left(sizes, bucket.tokens), bucket.tokens)

    def _comes_first(self, bucket: Bucket) -> bool:
        if not bucket.decodes:
            return bucket.tokens in _MIXED_AT_START
        return bucket.rows == self._max_seqs or _is_power(bucket.rows, _AT_START)

    def _decodes(self, rows: int) -> Bucket:
        return Bucket(rows, rows, 1)

    def _mixed(self, tokens: int) -> Bucket:
        """Rows for all slots: a step never has more."""
        return Bucket(min(self._max_seqs, tokens), tokens, tokens)


def decode_sizes(max_seqs: int) -> list[int]:
    """Rows of the decode buckets, ascending."""
    sizes = [
        1,
        2,
        4,
        *range(8, 129, 8),
        *range(144, 257, 16),
        *range(288, 513, 32),
        *range(576, max_seqs, 64),
    ]
    return [*(size for size in sizes if size < max_seqs), max_seqs]


def _by_use(bucket: Bucket) -> tuple[bool, int]:
    """Powers of two first; of these and of the others the largest."""
    return not _is_power(bucket.rows, 2), -bucket.rows


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
