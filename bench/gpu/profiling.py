"""Where the device's time goes: which part of it was busy, and with what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

from bench.gpu.place import Place
from bench.results_contract import Row, row

_TOP = 12
_NAME_CHARS = 70


class Span(NamedTuple):
    """A kernel or a copy on the device, microseconds."""

    name: str
    begins: float
    ends: float


class Profile(NamedTuple):
    """Of some work."""

    busy: float  # part of the time from the first span's beginning to the last one's end
    by_name: dict[str, float]  # part of the busy time, most first
    spans: int

    def rows(self, case: str) -> list[Row]:
        """The table's rows; with the profiler on, so a little slower than without."""
        named = [
            row(f"{case}: profile", name, "% of busy", [100 * part]) for name, part in self.by_name.items()
        ]
        return [row(case, "GPU busy, profiled", "%", [100 * self.busy]), *named]


def profiled(place: Place, work: Callable[[], object]) -> Profile | None:
    """Profiles what `work` does; None where the profiler saw no device work."""
    activities = [ProfilerActivity.CUDA if place.on_card else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        work()
        place.synchronize()
    return of_spans(_spans(profiler, place))


def of_spans(spans: Iterable[Span]) -> Profile | None:
    """Spans may overlap: streams run side by side."""
    ordered = sorted(spans, key=lambda span: span.begins)
    if not ordered:
        return None
    took: Counter[str] = Counter()
    busy, reached = 0.0, ordered[0].begins
    for span in ordered:
        took[span.name] += int(1000 * (span.ends - span.begins))
        busy += max(0.0, span.ends - max(span.begins, reached))
        reached = max(reached, span.ends)
    total = max(1, took.total())
    by_name = {name[:_NAME_CHARS]: each / total for name, each in took.most_common(_TOP)}
    return Profile(busy / max(reached - ordered[0].begins, 1e-9), by_name, len(ordered))


def _spans(profiler: profile, place: Place) -> Iterable[Span]:
    wanted = "CUDA" if place.on_card else "CPU"
    for event in profiler.events() or ():  # type: ignore[no-untyped-call]
        if event.device_type.name == wanted and not event.name.startswith("ProfilerStep"):
            yield Span(event.name, event.time_range.start, event.time_range.end)
