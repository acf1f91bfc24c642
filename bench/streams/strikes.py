"""Workers that are killed or frozen, one after the other, and what their streams' clients saw of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from headrace.v1.admin_pb2 import WORKER_STATE_READY

from bench.streams.mesh import Mill, StreamMesh
from bench.streams.stream import Gaps

_POLL_S = 0.1
_IN_FLIGHT_S = 0.05
"""What the worker has sent still arrives for so long."""


class Strike(NamedTuple):
    """One fault."""

    at_s: float
    held: int  # streams that the worker had

    def gaps(self, seen: Gaps) -> list[float]:
        """Of the streams that were on the worker: the longest around the fault, as many as it had."""
        around = seen.between(self.at_s, self.at_s + _IN_FLIGHT_S)
        return around[-self.held :] if self.held else []


class Striker:
    """Strikes the busiest worker every so often, while at least two are there, and sees that it comes back.

    Args:
        frozen_s: how long it is stopped; None: it is killed, and started again at once.
    """

    def __init__(self, mesh: StreamMesh, every_s: float, frozen_s: float | None) -> None:
        self.strikes: list[Strike] = []
        self._mesh = mesh
        self._every_s = every_s
        self._frozen_s = frozen_s
        self._away: set[str] = set()  # that were struck and are not back

    async def run(self, count: int) -> None:
        """So many strikes; returns when all workers are back."""
        next_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                next_s = max(next_s + self._every_s, time.monotonic())
                await asyncio.sleep(next_s - time.monotonic())
                mill = await self._victim()
                group.create_task(self._strike(mill))

    async def _victim(self) -> Mill:
        while True:
            there = {
                each.worker_id: each.requests
                for each in await self._mesh.listed(self._mesh.doors[0])
                if each.state == WORKER_STATE_READY and each.worker_id not in self._away
            }
            if len(there) >= 2:
                name = max(sorted(there), key=lambda each: there[each])
                self.strikes.append(Strike(time.monotonic(), there[name]))
                return self._mesh.mills[name]
            await asyncio.sleep(_POLL_S)

    async def _strike(self, mill: Mill) -> None:
        self._away.add(mill.name)
        await (self._freeze(mill) if self._frozen_s else self._kill(mill))
        self._away.discard(mill.name)

    async def _kill(self, mill: Mill) -> None:
        mill.strike(signal.SIGKILL)
        await self._mesh.add_worker(mill.name)

    async def _freeze(self, mill: Mill) -> None:
        assert self._frozen_s is not None
        mill.strike(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._frozen_s)
        finally:
            mill.strike(signal.SIGCONT)


def around(strikes: Sequence[Strike], seen: Gaps) -> Iterator[float]:
    """The gaps of all streams that were on a worker as it was struck."""
    for each in strikes:
        yield from each.gaps(seen)
