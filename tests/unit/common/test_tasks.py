from __future__ import annotations

import asyncio
import contextlib

from services.common.lifecycle import Tasks


async def test_cancel_ends_a_task_that_swallows_its_first_cancel() -> None:
    tasks = Tasks()
    started = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            started.set()
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = tasks.spawn(stubborn(), "stubborn")
    await started.wait()
    await tasks.cancel()
    assert task.cancelled()
    assert len(tasks) == 0


async def test_the_first_failure_is_kept() -> None:
    tasks = Tasks()

    async def fail(message: str) -> None:
        raise RuntimeError(message)

    tasks.spawn(fail("first"), "one")
    assert str(await tasks.failed) == "first"
    tasks.spawn(fail("second"), "two")
    await tasks.cancel()
    assert str(tasks.failed.result()) == "first"
