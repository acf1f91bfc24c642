"""Cyclic garbage goes, and nobody waits for a look at everything."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from services.common.garbage import Collector

ALWAYS, NEVER = -1.0, 1e9  # how long a turn must take for what survives it to be frozen


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def collector() -> Iterator[Collector]:
    before = gc.get_threshold()
    yield Collector()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_a_cycle_is_gone_after_the_next_turn(collector: Collector) -> None:
    seen = weakref.ref(Knot())
    collector.turn(NEVER)
    assert seen() is None


def test_python_looks_at_everything_no_more(collector: Collector) -> None:
    full: list[int] = []

    def watch(phase: str, info: dict[str, int]) -> None:
        full.extend([1] * (phase == "start" and info["generation"] == 2))

    gc.callbacks.append(watch)
    try:
        heap = [[number] for number in range(400_000)]
    finally:
        gc.callbacks.remove(watch)
    assert len(heap) == 400_000
    assert not full


def test_what_lives_through_long_turns_is_not_looked_at_again_and_goes_with_its_last_reference(
    collector: Collector,
) -> None:
    frozen = gc.get_freeze_count()
    heap = [[number] for number in range(50_000)]
    collector.turn(ALWAYS, least=1 << 30)
    assert gc.get_freeze_count() >= frozen + 50_000
    assert collector.passes == 1
    heap.clear()
    assert gc.get_freeze_count() < frozen + 5_000


def test_garbage_among_the_frozen_goes_before_it_is_half_of_everything(collector: Collector) -> None:
    frozen, most = gc.get_freeze_count(), 0
    for _ in range(40):
        knots = [Knot() for _ in range(frozen // 10)]
        collector.turn(ALWAYS, least=0)
        knots.clear()
        most = max(most, gc.get_freeze_count())
    assert collector.passes > 1
    assert most < 3 * frozen
