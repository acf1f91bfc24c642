"""Steps of a decoder without a model: each sequence gets its next id a step."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

from bench.relay.processes import READY


async def steps(step_s: float, step: Callable[[], None]) -> None:
    """Calls `step` every `step_s`, for ever; lost time is not made up for."""
    due_s = time.monotonic()
    while True:
        due_s = max(due_s + step_s, time.monotonic())
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        step()


class Text:
    """The ids that every sequence consists of, again and again."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    @classmethod
    def read(cls, path: Path) -> Text:
        """From a JSON list."""
        return cls(json.loads(path.read_text()))

    def at(self, index: int) -> int:
        """The id at an output index."""
        return self._ids[index % len(self._ids)]


def options(purpose: str) -> argparse.ArgumentParser:
    """The flags that all such workers have."""
    found = argparse.ArgumentParser(description=purpose)
    found.add_argument("--ids", type=Path, required=True, help="JSON list of ids to answer with")
    found.add_argument("--step-s", type=float, default=0.01)
    return found


def ready(port: int) -> None:
    """Tells whoever started this process."""
    print(READY, port, flush=True)
