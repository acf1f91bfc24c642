"""How much KV memory there may be, and what to say when it is too little."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch

from services.worker.engine.errors import NotEnoughMemory
from services.worker.engine.torch.config import ModelConfig
from services.worker.engine.torch.kv import bytes_per_block
from services.worker.scheduler.step import KVSpec

BLOCK_TOKENS = 64
_CPU_SHARE = 0.25
_CPU_MOST = 4 << 30


class MemoryWish(Protocol):
    """What an operator asked for; `EngineSettings` says what each means."""

    @property
    def max_context(self) -> int | None: ...

    @property
    def kv_blocks(self) -> int | None: ...

    @property
    def kv_memory_bytes(self) -> int | None: ...

    @property
    def max_seqs(self) -> int: ...


def choose_spec(wish: MemoryWish, config: ModelConfig, dtype: torch.dtype) -> KVSpec:
    """Blocks and context that fit into this machine's memory. Raises NotEnoughMemory when what was asked for
    does not."""
    return fit_spec(wish, config, dtype, min(int(available_bytes() * _CPU_SHARE), _CPU_MOST))


def fit_spec(wish: MemoryWish, config: ModelConfig, dtype: torch.dtype, free_bytes: int) -> KVSpec:
    """What fits into so many bytes, where nothing else was asked for. Raises NotEnoughMemory."""
    block_bytes = bytes_per_block(config, BLOCK_TOKENS, dtype)
    most = longest_context(wish, config)
    useful = wish.max_seqs * -(-most // BLOCK_TOKENS)
    budget = free_bytes if wish.kv_memory_bytes is None else wish.kv_memory_bytes
    blocks = wish.kv_blocks or min(max(0, budget) // block_bytes, useful)
    context = min(most, blocks * BLOCK_TOKENS)
    if blocks < 1 or (wish.max_context is not None and context < most):
        needed = -(-most // BLOCK_TOKENS) * block_bytes
        raise NotEnoughMemory(
            f"a context of {most} tokens needs {_mib(needed)} of KV memory, {_mib(blocks * block_bytes)} are"
            " to be had; lower max_context or raise kv_memory_bytes"
        )
    return KVSpec(
        block_size=BLOCK_TOKENS, num_blocks=blocks, max_seqs=min(wish.max_seqs, blocks), max_len=context
    )


def longest_context(wish: MemoryWish, config: ModelConfig) -> int:
    """Tokens of a sequence, memory permitting."""
    return config.context if wish.max_context is None else min(wish.max_context, config.context)


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and its cgroup's quota."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota_cpus()))


def available_bytes() -> int:
    """Memory that this process can still take without swapping: the machine's, and its cgroup's."""
    return min(_machine_bytes(), _cgroup_bytes())


def _machine_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _cgroup_bytes() -> int:
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    return 1 << 62 if limit is None else max(0, limit - (used or 0))


def _quota_cpus() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return 1 << 30 if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 30


def _cgroup_number(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"
