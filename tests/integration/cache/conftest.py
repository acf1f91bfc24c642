from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.cache_service import RunningCache, running_cache
from tests.support.valkey import TestValkey, shared_valkey, valkey

__all__ = ["cache", "memory_cache", "shared_valkey", "valkey"]


@pytest_asyncio.fixture
async def cache(tmp_path: Path, valkey: TestValkey) -> AsyncIterator[RunningCache]:
    """A cache service over a Valkey of its own that it relies on, and no memory of its own."""
    async with running_cache(tmp_path, valkey_url=valkey.url, l1_bytes=0) as running:
        await running.until_valkey_is(True)
        yield running


@pytest_asyncio.fixture
async def memory_cache(tmp_path: Path) -> AsyncIterator[RunningCache]:
    """A cache service without Valkey."""
    async with running_cache(tmp_path) as running:
        yield running
