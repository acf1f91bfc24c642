"""A device on the CPU that puts its work off as long as it may, or runs it at times that a seed chooses.

Whoever reuses memory too early, forgets an event, or captures a value of Python gets wrong results: a stream
is a queue, an entry runs when an event behind it is waited for or when chance says so, and a graph is the
list of operations that were recorded, run again on the same tensors.
"""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from services.worker.engine.torch.cuda.device import DeviceMemory, Event, Stream, Work


class FakeEvent:
    """Counts its marks: those enqueued, and those reached."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.marks: list[FakeStream] = []  # the stream of each mark
        self.reached = 0

    def wait(self) -> None:
        self.device.chance()
        self.device.stalls += self.reached < len(self.marks)
        self.complete(len(self.marks))

    def complete(self, mark: int) -> None:
        """Run what has to run before this mark."""
        while self.reached < mark:
            self.marks[mark - 1].advance()


class _Mark(NamedTuple):
    event: FakeEvent
    number: int


class _Until(NamedTuple):
    event: FakeEvent
    number: int


class FakeStream:
    """A queue of work, marks, and marks of others to wait for."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._queue: deque[Work | _Mark | _Until] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def run(self, work: Work) -> None:
        self._queue.append(work)
        self._device.chance()

    def record(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        event.marks.append(self)
        self._queue.append(_Mark(event, len(event.marks)))
        self._device.chance()

    def follow(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        self._queue.append(_Until(event, len(event.marks)))
        self._device.chance()

    def advance(self) -> None:
        """Run the next entry, and before it what it waits for."""
        entry = self._queue.popleft()
        if isinstance(entry, _Mark):
            entry.event.reached = max(entry.event.reached, entry.number)
        elif isinstance(entry, _Until):
            entry.event.complete(entry.number)
        else:
            with torch.inference_mode():
                entry()


class FakeGraph:
    """Recorded operations; a replay runs them on the tensors of the recording."""

    def __init__(self, device: FakeDevice, operations: list[Work]) -> None:
        self._device = device
        self._operations = operations

    def replay(self) -> None:
        self._device.replays += 1
        for operation in self._operations:
            operation()


class FakeDevice:
    """`eager`: the chance, at each call, that an entry runs at once; 0 puts all off until waited for."""

    def __init__(self, seed: int = 0, eager: float = 0.0, total: int = 1 << 30) -> None:
        self.where = torch.device("cpu")
        self.allocations = 0
        self.captures = 0
        self.replays = 0
        self.stalls = 0  # how often the host waited for the device
        self.pinned_bytes = 0
        self.used = 0  # bytes
        self.measured = 0  # the most that work took at once while it was measured
        self._total = total
        self._eager = eager
        self._random = random.Random(seed)
        self._streams: list[FakeStream] = []
        self._recorder: _Recorder | None = None
        self._chances = True

    def stream(self) -> FakeStream:
        self._streams.append(FakeStream(self))
        return self._streams[-1]

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def pinned(self, size: int) -> torch.Tensor:
        self.allocations += 1
        self.pinned_bytes += size
        return torch.zeros(size, dtype=torch.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.allocations += 1
        memory = torch.zeros(shape, dtype=dtype)
        self._take(memory.nbytes)
        weakref.finalize(memory.untyped_storage(), self._take, -memory.nbytes)
        return memory

    def _take(self, size: int) -> None:
        self.used += size
        if self.used > self._total:
            raise torch.OutOfMemoryError("out of memory")

    def capture(self, stream: Stream, work: Work) -> FakeGraph:
        self.captures += 1
        self.synchronize()
        recorder = _Recorder()
        self._recorder = recorder
        try:
            stream.run(lambda: recorder.record(work))
            self.synchronize()
        finally:
            self._recorder = None
        return FakeGraph(self, recorder.operations)

    def measure(self, stream: Stream, work: Work) -> int:
        self.synchronize()
        meter = _Meter()
        stream.run(lambda: meter.run(work))
        self.synchronize()
        self.measured = max(self.measured, meter.peak)
        return meter.peak

    def memory(self) -> DeviceMemory:
        return DeviceMemory(self._total - self.used, self._total, self.used, self.used)

    def synchronize(self) -> None:
        for stream in self._streams:
            while len(stream):
                stream.advance()

    def chance(self) -> None:
        """Somebody called: maybe the device is as far as to run some of what waits."""
        while self._eager and self._random.random() < self._eager:
            waiting = [stream for stream in self._streams if len(stream)]
            if not waiting:
                return
            self._random.choice(waiting).advance()

    def kernels(self, module: Any) -> Any:
        """The functions of a module of kernels, each recorded as one operation whatever it does inside."""
        return _Kernels(module, self)

    def launch(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Run a kernel; of a graph's recording it is one operation."""
        if self._recorder is None:
            function(*args, **kwargs)
        else:
            self._recorder.kernel(lambda: function(*args, **kwargs))


class _Kernels:
    def __init__(self, module: Any, device: FakeDevice) -> None:
        self._module = module
        self._device = device

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, type) or not callable(value):
            return value
        if not name.islower() or name.endswith(("workspace", "of", "for")):  # sizes and types, no launches
            return value
        return lambda *args, **kwargs: self._device.launch(value, args, kwargs)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what runs in it, on which tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Work] = []
        self._inside = False

    def record(self, work: Work) -> None:
        with self:
            work()

    def kernel(self, call: Work) -> None:
        self._inside = True
        try:
            call()
        finally:
            self._inside = False
        self.operations.append(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside:
            self._keep(func, args, kwargs or {}, result)
        return result

    def _keep(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        outputs = [each for each in _flat(result) if isinstance(each, torch.Tensor)]
        given = {_storage(each) for each in _flat((args, kwargs)) if isinstance(each, torch.Tensor)}
        fresh = [index for index, each in enumerate(outputs) if _storage(each) not in given]

        def again() -> None:
            made = [each for each in _flat(func(*args, **kwargs)) if isinstance(each, torch.Tensor)]
            for index in fresh:
                outputs[index].copy_(made[index])

        if outputs or not isinstance(result, torch.Tensor):
            assert outputs, f"{func} gives the host a value: a graph cannot"
            self.operations.append(again)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes of new tensors alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._seen: set[int] = set()

    def run(self, work: Work) -> None:
        with self:
            work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(each) for each in _flat((args, kwargs or {})) if isinstance(each, torch.Tensor)}
        for each in _flat(result):
            if isinstance(each, torch.Tensor) and _storage(each) not in given:
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        size = storage.nbytes()
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._now -= size


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [each for part in value.values() for each in _flat(part)]
    if isinstance(value, list | tuple):
        return [each for part in value for each in _flat(part)]
    return [value]
