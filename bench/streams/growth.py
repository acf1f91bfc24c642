"""How the memory of processes grows, and what CPU time they take, while something runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.cpu_time import cpu_s

LOOK_S = 2.0
COUNTED = 0.8
"""Part of the time, at its end, that a slope is of."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Look(NamedTuple):
    """At one process: when, in seconds, its resident memory in MB, its CPU seconds."""

    at_s: float
    rss_mb: float
    cpu_s: float


class Growth:
    """Of processes by name."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.looks: dict[str, list[Look]] = {name: [] for name in pids}
        self._pids = dict(pids)

    def look(self) -> None:
        """Notes what all of them have now. Raises OSError for one that has ended."""
        for name, pid in self._pids.items():
            self.looks[name].append(Look(time.monotonic(), rss_mb(pid), cpu_s(pid)))

    async def watch(self, seconds: float) -> None:
        """Looks every LOOK_S."""
        end_s = time.monotonic() + seconds
        self.look()
        while (left_s := end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(LOOK_S, left_s))
            self.look()

    def slope_mb(self, name: str) -> float:
        """A minute, by least squares over the last COUNTED of the time."""
        looks = self._counted(name)
        minutes = np.array([each.at_s for each in looks]) / 60
        return float(np.polyfit(minutes - minutes[0], [each.rss_mb for each in looks], 1)[0])

    def cores(self, name: str) -> float:
        """That it kept busy, of that time."""
        looks = self._counted(name)
        return (looks[-1].cpu_s - looks[0].cpu_s) / (looks[-1].at_s - looks[0].at_s)

    def _counted(self, name: str) -> list[Look]:
        looks = self.looks[name]
        from_s = looks[-1].at_s - COUNTED * (looks[-1].at_s - looks[0].at_s)
        return [each for each in looks if each.at_s >= from_s]


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 2**20
