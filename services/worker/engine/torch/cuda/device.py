"""What the runner asks of a device besides tensors: streams, events, pinned memory, graphs, memory figures.

Work reaches a device through `Stream.run` only, and what it reads of the host is bound when it is enqueued,
except pinned memory: that is read when the device comes to it. `CudaDevice` is the real one; tests have
another that puts work off on purpose.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

Work = Callable[[], None]


class DeviceMemory(NamedTuple):
    """Bytes."""

    free: int  # that nobody has taken
    total: int
    used: int  # by tensors of this process
    reserved: int  # by this process, those included


class Event(Protocol):
    """A mark in a stream; recorded again, it is a new mark. Before the first mark it counts as reached."""

    def wait(self) -> None:
        """Hold up the host until the device has reached the mark."""


class Stream(Protocol):
    """Work of one stream runs in order."""

    def run(self, work: Work) -> None:
        """Enqueue what `work` launches."""

    def record(self, event: Event) -> None:
        """Put the event's mark behind all work so far."""

    def follow(self, event: Event) -> None:
        """Hold up later work of this stream until the event's last mark so far is reached."""


class Graph(Protocol):
    """Captured work: the same launches on the same memory each time."""

    def replay(self) -> None:
        """Enqueue it; called within `Stream.run`."""


class Device(Protocol):
    """One accelerator."""

    @property
    def where(self) -> torch.device: ...

    def stream(self) -> Stream:
        """A new stream."""

    def event(self) -> Event:
        """A new event."""

    def pinned(self, size: int) -> torch.Tensor:
        """[size] bytes of host memory that copies read and write while the host goes on."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the device for good, zeroed."""

    def capture(self, stream: Stream, work: Work) -> Graph:
        """What `work` launches, as a graph. It has run once before on this stream; nothing is under way."""

    def measure(self, stream: Stream, work: Work) -> int:
        """Run it to its end; the most bytes that tensors made by it took at once."""

    def memory(self) -> DeviceMemory: ...

    def synchronize(self) -> None:
        """Wait until all streams are idle."""


class CudaEvent:
    """Waits without spinning: a step takes milliseconds, and the next one is under way meanwhile."""

    def __init__(self) -> None:
        self.raw = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self.raw.synchronize()


class CudaStream:
    """A stream of torch. One thread uses it at a time; several may take turns."""

    def __init__(self, device: torch.device) -> None:
        self.raw = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Work) -> None:
        with torch.cuda.stream(self.raw):
            work()

    def record(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        event.raw.record(self.raw)

    def follow(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.raw.wait_event(event.raw)


class CudaDevice:
    """A CUDA device. Graphs share one pool of memory: they never run at the same time."""

    def __init__(self, where: torch.device) -> None:
        self.where = where
        torch.cuda.set_device(where)
        self._pool = torch.cuda.graph_pool_handle()
        self._capturing = threading.Lock()

    def stream(self) -> CudaStream:
        return CudaStream(self.where)

    def event(self) -> CudaEvent:
        return CudaEvent()

    def pinned(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.where)

    def capture(self, stream: Stream, work: Work) -> torch.cuda.CUDAGraph:
        """Without the collection of garbage and the emptied cache of `torch.cuda.graph`: eager steps would
        have to allocate afresh."""
        graph = torch.cuda.CUDAGraph()
        self.synchronize()
        with self._capturing:
            stream.run(lambda: self._capture(graph, work))
        self.synchronize()
        return graph

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Work) -> None:
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()

    def measure(self, stream: Stream, work: Work) -> int:
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.where)
        before = torch.cuda.memory_allocated(self.where)
        stream.run(work)
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.where) - before

    def memory(self) -> DeviceMemory:
        free, total = torch.cuda.mem_get_info(self.where)
        used, reserved = torch.cuda.memory_allocated(self.where), torch.cuda.memory_reserved(self.where)
        return DeviceMemory(free, total, used, reserved)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.where)
