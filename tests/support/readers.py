"""A client of an outlet without gRPC between: it reads all, or as much as a test lets it."""

from __future__ import annotations

import asyncio

from headrace.v1 import router_pb2

from services.common.errors import HeadraceError
from services.common.replies import Replies
from services.router.relay.outlet import Outlet
from tests.support.waiting import TIMEOUT_S

ALL = 1 << 30


class Reader:
    """Reads an outlet to its end. `reads`: how many messages it takes, until it is told to take more."""

    def __init__(self, outlet: Outlet, reads: int = ALL) -> None:
        self.deltas: list[router_pb2.Delta] = []
        self.end: router_pb2.Finished | HeadraceError | None = None
        self.reads = reads
        self.begun = 0
        """Messages that were written to it, one of which it may not yet have read."""
        self._more = asyncio.Event()
        self._replies = Replies(self._write)
        self._task = asyncio.create_task(self._run(outlet))

    @property
    def ids(self) -> list[int]:
        return [each for delta in self.deltas for each in delta.token_ids]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    async def read(self, messages: int = 1) -> None:
        """Returns when so many more have come, or the end has."""
        self.reads = min(self.reads, len(self.deltas)) + messages
        self._more.set()
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.deltas) < self.reads and not self._task.done():
                await asyncio.sleep(0)
                self._replies.busy  # noqa: B018 - to look is to take the next step of what is under way

    async def to_the_end(self) -> Reader:
        """Reads the rest."""
        self.reads = ALL
        self._more.set()
        await asyncio.wait_for(self._task, TIMEOUT_S)
        return self

    def leave(self) -> None:
        """Reads no more."""
        self._task.cancel()

    async def _run(self, outlet: Outlet) -> None:
        try:
            self.end = await outlet.flow(self._replies)
        except HeadraceError as error:
            self.end = error

    async def _write(self, message: router_pb2.GenerateResponse) -> None:
        self.begun += 1
        while len(self.deltas) >= self.reads:
            self._more.clear()
            await self._more.wait()
        index = self.deltas[-1].index + len(self.deltas[-1].token_ids) if self.deltas else message.delta.index
        assert not message.delta.token_ids or message.delta.index == index, "no token is missing or doubled"
        self.deltas.append(message.delta)
