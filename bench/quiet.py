"""Waiting until nothing else of this machine computes: what ran before may spin on for a second."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

_WINDOW_S = 0.1
_BUSY = 0.05  # part of the cores' time that idle services take together


class _Ticks(NamedTuple):
    """Of all cores since the start."""

    busy: int
    all: int

    @classmethod
    def now(cls) -> _Ticks:
        user, nice, system, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
        return cls(user + nice + system, user + nice + system + sum(others))


def wait_for_quiet(limit_s: float = 3.0) -> bool:
    """Wait until processes here leave the cores alone, or the limit is over; whether they do.

    Time that other machines of the same host take is not seen.
    """
    end_s = time.monotonic() + limit_s
    before = _Ticks.now()
    while time.monotonic() < end_s:
        time.sleep(_WINDOW_S)
        now = _Ticks.now()
        if now.busy - before.busy <= _BUSY * (now.all - before.all):
            return True
        before = now
    return False
