"""CPU seconds of processes, user and system, from /proc: of one alone, or of this one with its engine."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

ENGINE_PROCESS = "headrace-engine"  # as services/worker/engine/process.py names it


def cpu_s(pid: int) -> float:
    """User and system time of a process, of its ended threads too; in ticks of 10 ms."""
    return sum(_times(Path(f"/proc/{pid}/stat").read_text())) / os.sysconf("SC_CLK_TCK")


def own_cpu_s() -> float:
    """Of this process."""
    return time.process_time()


def engine_pid() -> int:
    """The engine's process that this one has started. Raises LookupError when there is not one alone."""
    found = [child.pid for child in multiprocessing.active_children() if child.name == ENGINE_PROCESS]
    if len(found) != 1 or found[0] is None:
        raise LookupError(f"{len(found)} engine processes, not one")
    return found[0]


def _times(stat: str) -> tuple[int, int]:
    """utime and stime; the name before them may hold anything, parentheses too."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])
