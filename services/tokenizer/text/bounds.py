"""What a pool of processes may do at most, and what it did."""

from __future__ import annotations

from typing import NamedTuple


class PoolLimits(NamedTuple):
    """Bounds of a pool."""

    processes: int = 2
    queued_jobs: int = 4096
    """Jobs that may wait for a process; more are refused. One tenant's may be half of them."""
    queued_chars: int = 64 << 20
    """Characters that waiting jobs may hold together; those of one tenant, half of them."""
    long_chars: int = 32 << 10
    """A job of more characters is a long one: half of the processes take none, unless there is only one."""
    wait_s: float = 10.0
    """A job that waited so long for a process is refused."""
    min_run_s: float = 0.25
    """A process works on a job at least so long before it is killed: a caller who gives a millisecond
    must not cost everybody a process."""
    memory_bytes: int = 1 << 30
    """What one process may allocate beyond the loaded tokenizer."""
    start_timeout_s: float = 60.0
    """How long a process may take to load."""


class PoolStatistics(NamedTuple):
    """What a pool does now, and what it did so far."""

    processes: int
    """Alive and loaded now."""
    busy: int
    """Of those, with a job."""
    queued: int
    """Jobs that wait."""
    timeouts: int
    """Processes that were killed because a job ran past its deadline."""
    deaths: int
    """Processes that ended by themselves or by another's hand."""
    refused: int
    """Jobs that found the queue full."""
    mismatches: int
    """Texts where the fast path and the reference differed."""
