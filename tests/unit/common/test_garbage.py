"""Cyclic garbage goes, and nobody waits for a look at everything."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.garbage import Collector

ALWAYS, NEVER = -1.0, 1e9  # seconds that a turn must take


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def pythons_own() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()
    gc.freeze()  # as it was: see tests/conftest.py


def test_a_cycle_is_gone_after_the_next_turn() -> None:
    collector = Collector(long_s=NEVER)
    seen = weakref.ref(Knot())
    collector.turn()
    assert seen() is None


def test_python_looks_at_everything_no_more() -> None:
    Collector()
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


def test_what_lives_through_long_turns_is_not_looked_at_again_and_goes_with_its_last_reference() -> None:
    collector = Collector(long_s=ALWAYS)
    frozen = gc.get_freeze_count()
    heap = [[number] for number in range(50_000)]
    collector.turn()
    assert gc.get_freeze_count() >= frozen + 50_000
    assert collector.passes == 1
    heap.clear()
    assert gc.get_freeze_count() < frozen + 5_000


SMALL = """
import gc
from services.common.garbage import Collector

class Knot:
    def __init__(self):
        self.me = self

collector = Collector(long_s=-1.0, count_after_s=-1.0, least=0)
frozen, most = gc.get_freeze_count(), 0
for _ in range(40):
    knots = [Knot() for _ in range(frozen // 10)]
    collector.turn()
    knots.clear()
    most = max(most, gc.get_freeze_count())
print(collector.passes, most / frozen)
"""


def test_garbage_among_the_frozen_goes_before_it_is_half_of_everything(project_root: Path) -> None:
    """In a process with few objects: every turn looks at all that there are."""
    said = subprocess.check_output([sys.executable, "-c", SMALL], cwd=project_root, text=True)
    passes, most = map(float, said.split())
    assert passes > 1
    assert most < 3
