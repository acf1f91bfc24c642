"""Keeps children alive, and ends them in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from services.cli.errors import CliError
from services.cli.up.child import Child, ChildSpec, NotReady
from services.common.backoff import Backoff

Say = Callable[[str], None]
LAST_LINES = 3


class Supervisor:
    """The children of one mesh.

    Args:
        logs: directory of their logs; those of the last run are kept as NAME.log.1.
        say: prints a line for the person at the terminal.
    """

    def __init__(self, specs: Sequence[ChildSpec], logs: Path, say: Say) -> None:
        self.children = [Child(spec, logs) for spec in specs]
        self._say = say
        self._keepers: list[asyncio.Task[None]] = []
        for child in self.children:
            if child.log.exists():
                child.log.replace(child.log.with_suffix(".log.1"))

    async def start(self) -> None:
        """Starts all at once; returns when all are ready.

        What never served is not restarted: its fault would only come again. Cancelling ends the wait, and
        `drain` what was started.

        Raises:
            CliError: one of them could not start; says which and why.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for child in self.children:
                    group.create_task(_start(child))
        except* _CannotStart as failures:
            raise CliError(str(failures.exceptions[0])) from None
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self.children]

    async def _keep(self, child: Child) -> None:
        """Starts the child again whenever it dies."""
        backoff = Backoff()
        while True:
            await child.wait()
            served_s = time.monotonic() - child.ready_since_s if child.ready_since_s is not None else 0.0
            delay_s = backoff.after(served_s)
            why = f" ({reason})" if (reason := child.reason()) else ""
            end = f"{child.spec.name} (pid {child.pid}) {child.end()}{why}"
            self._say(f"{end}; starting again in {delay_s:g} s")
            for line in () if child.ended_well else child.last_words(LAST_LINES):
                self._say(f"  {line}")
            await asyncio.sleep(delay_s)
            await self._revive(child)

    async def _revive(self, child: Child) -> None:
        try:
            await child.start()
            await child.become_ready()
        except (NotReady, OSError) as error:
            self._say(f"{child.spec.name} (pid {child.pid}) is not back: {error}")
            child.kill()
        else:
            self._say(f"{child.spec.name} is back (pid {child.pid})")

    async def drain(self, forced: asyncio.Event) -> None:
        """Ends all children, stage by stage; at once when `forced` is set."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        force = asyncio.create_task(self._kill_when(forced))
        try:
            for _, stage in groupby(sorted(self.children, key=_stage), key=_stage):
                await asyncio.gather(*(self._stop(child) for child in stage))
        finally:
            force.cancel()

    async def _stop(self, child: Child) -> None:
        if not child.running:
            return await child.wait()
        if not await child.stop():
            self._say(f"{child.spec.name} took longer than {child.spec.stop_timeout_s:g} s and was killed")

    async def _kill_when(self, forced: asyncio.Event) -> None:
        await forced.wait()
        for child in self.children:
            child.kill()


class _CannotStart(Exception):
    """A child that never served."""


async def _start(child: Child) -> None:
    try:
        await child.start()
        await child.become_ready()
    except (NotReady, OSError) as error:
        raise _CannotStart(f"{child.spec.name} cannot start: {error} (log: {child.log})") from None


def _stage(child: Child) -> int:
    return child.spec.stage
