"""Waiting for conditions instead of for time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_POLL_S = 0.01


async def eventually(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Returns when the condition holds; fails the test after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s"
        await asyncio.sleep(_POLL_S)


async def eventually_async(
    condition: Callable[[], Awaitable[object]], what: str, timeout_s: float = 20.0
) -> None:
    """`eventually` for a condition that has to be awaited."""
    end = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s"
        await asyncio.sleep(_POLL_S)


def eventually_sync(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """`eventually` for code without an event loop."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s"
        time.sleep(_POLL_S)
