"""Times of device work: warmed up, by events, from cold caches, many times; the median counts.

What is timed is captured into a graph where that works, so that launches by the host are no part of it.
Before each run a buffer larger than the L2 cache is overwritten: an engine's weights and KV never wait there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from bench.gpu.place import Place

Work = Callable[[], object]
_WARM_S = 0.05
_TIMED_S = 0.15  # of runs of one case
_LEAST, _MOST = 5, 200
_FLUSH_BYTES = 256 << 20


class Timer:
    """Times work on one device."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._flush = torch.empty(place.size(_FLUSH_BYTES, 1 << 10), dtype=torch.int8, device=place.device)

    def seconds(self, work: Work, *, graph: bool = True) -> list[float]:
        """Of each of many runs. `graph=False` for work that cannot be captured."""
        once_s = self._warm_up(work)
        count = min(_MOST, max(_LEAST, int(_TIMED_S / max(once_s, 1e-6))))
        if not self._place.on_card:
            return [_on_host(work) for _ in range(2)]
        captured = self._captured(work) if graph else None
        return self._by_events(captured.replay if captured else work, count)

    def median_s(self, work: Work, *, graph: bool = True) -> float:
        """The median of `seconds`."""
        return statistics.median(self.seconds(work, graph=graph))

    def _warm_up(self, work: Work) -> float:
        """Compiles, fills caches and raises clocks; about how long one run takes."""
        work()
        self._place.synchronize()
        began, runs = time.perf_counter(), 0
        while time.perf_counter() - began < (0.0 if self._place.dry else _WARM_S) or not runs:
            work()
            self._place.synchronize()
            runs += 1
        return (time.perf_counter() - began) / runs

    def _captured(self, work: Work) -> torch.cuda.CUDAGraph | None:
        """None, and a line that says so, for what cannot be captured: it is timed with its launches."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                work()
        except RuntimeError as error:
            print(f"not captured: {str(error)[:100]}", flush=True)
            self._place.synchronize()
            return None
        return graph

    def _by_events(self, work: Work, count: int) -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]  # type: ignore[no-untyped-call]
        for begin, end in pairs:
            self._flush.zero_()
            begin.record()
            work()
            end.record()
        self._place.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def _on_host(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
