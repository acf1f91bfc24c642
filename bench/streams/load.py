"""Clients that ask one thing after the other, so that as many streams as they are run at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from headrace.v1.router_pb2_grpc import RouterServiceStub

from bench.streams.asked import Asked
from bench.streams.stream import Tally, read
from services.common.transport import Tls, channel

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub


@asynccontextmanager
async def stubs(
    addresses: Sequence[str], connections: int = 1
) -> AsyncIterator[list[RouterServiceAsyncStub]]:
    """So many connections to each address."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(channel(address, Tls()))
            for _ in range(connections)
            for address in addresses
        ]
        yield [RouterServiceStub(each) for each in channels]


class Load:
    """Clients over some connections.

    Args:
        leave: of all streams, the part that its client leaves in its first half: none is over by then.
    """

    def __init__(
        self,
        stubs: Sequence[RouterServiceAsyncStub],
        asked: Sequence[Asked],
        tally: Tally,
        *,
        leave: float = 0.0,
        seed: int = 1,
    ) -> None:
        self.tally = tally
        self._stubs = stubs
        self._asked = asked
        self._leave = leave
        self._choose = random.Random(seed)
        self._until_s = 0.0

    async def run(self, streams: int, seconds: float, ramp_s: float) -> None:
        """So many clients, which come over `ramp_s`, ask for `seconds`, and read all answers to their end."""
        self._until_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(streams):
                group.create_task(self._client(number, ramp_s * number / streams))

    def stop(self) -> None:
        """Nothing more is asked for."""
        self._until_s = 0.0

    async def _client(self, number: int, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        stub = self._stubs[number % len(self._stubs)]
        while time.monotonic() < self._until_s:
            asked = self._choose.choice(self._asked)
            leaves = self._choose.random() < self._leave
            leave_at = self._choose.randint(1, len(asked.ids) // 2) if leaves else None
            await read(stub, asked, self.tally, leave_at=leave_at)
