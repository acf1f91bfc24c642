"""Waiting for conditions instead of for time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

TIMEOUT_S = 60.0
"""Ends a hang: what takes a moment may take long on a machine with other work."""
_POLL_S = 0.01


async def eventually(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when the condition holds; fails the test after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s"
        await asyncio.sleep(_POLL_S)


async def eventually_async(
    condition: Callable[[], Awaitable[object]], what: str, timeout_s: float = TIMEOUT_S
) -> None:
    """`eventually` for a condition that has to be awaited."""
    end = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s"
        await asyncio.sleep(_POLL_S)


def eventually_sync(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """`eventually` for code without an event loop."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not after {timeout_s} s"
        time.sleep(_POLL_S)
