from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.session_router import RouterSession, SessionRouter
from tests.support.worker_service import RunningWorker, running_worker


@pytest_asyncio.fixture
async def router() -> AsyncIterator[SessionRouter]:
    """A scripted router."""
    async with SessionRouter() as running:
        yield running


@pytest_asyncio.fixture
async def worker(tmp_path: Path, router: SessionRouter) -> AsyncIterator[RunningWorker]:
    """A worker that is attached to the router."""
    async with running_worker(tmp_path, router.address) as running:
        await router.attached()
        yield running


@pytest_asyncio.fixture
async def session(router: SessionRouter, worker: RunningWorker) -> RouterSession:
    """Their first session."""
    return await router.attached()
