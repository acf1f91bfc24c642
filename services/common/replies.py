"""Replies of a streaming call, handed to gRPC in the turn in which they come to be.

To write is a coroutine: its first step gives the message to gRPC, the rest only waits until it is written.
Here whoever has a message takes the first step, and the rest is taken when somebody looks again. So no task
is woken to write, and none because something was written: most of what a small message costs in Python.

A client that does not read ends its call here, and not in gRPC, which would wait for it without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from services.common.errors import SlowConsumer

Write = Callable[[Any], Coroutine["asyncio.Future[object]", None, None]]


class Replies:
    """The messages of one call to its client; one is under way at a time.

    Args:
        write: gRPC's own.
        begins: called ahead of each message.
        stall_s: how long one may be under way while the call's handler waits, in seconds; None: for ever.
    """

    def __init__(
        self, write: Write, begins: Callable[[], None] = lambda: None, stall_s: float | None = None
    ) -> None:
        self._write = write
        self._begins = begins
        self._stall_s = stall_s or 0.0
        self._loop = asyncio.get_running_loop()
        self._rest: Coroutine[asyncio.Future[object], None, None] | None = None
        self._awaited: asyncio.Future[object] | None = None
        self._since = 0.0
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer = self._loop.call_later(stall_s, self._look) if stall_s is not None else None

    @property
    def busy(self) -> bool:
        """Whether a message is under way."""
        while self._awaited is not None and self._awaited.done():
            self._go_on()
        return self._awaited is not None

    @property
    def failed(self) -> bool:
        """Whether a message could not be written: no other will be."""
        return self._failure is not None

    @property
    def since(self) -> float | None:
        """When the message that is under way was begun, by the loop's clock; None: there is none."""
        return None if self._awaited is None or self._awaited.done() else self._since

    def begin(self, message: Any) -> None:
        """Gives a message to gRPC; for who knows that none is under way. What goes wrong ends `wait`."""
        if self._failure is None:
            self._begins()
            self._rest = self._write(message)
            self._since = self._loop.time()
            self._go_on()

    def when_free(self, callback: Callable[[], None]) -> None:
        """Calls back when the message that is under way is written or has failed."""
        assert self._awaited is not None, "for who knows that a message is under way"
        self._awaited.add_done_callback(lambda _: callback())

    async def wait(self) -> None:
        """Returns after `wake`. For the handler of the call.

        Raises:
            SlowConsumer: a message waits for the client for too long.
            Exception: what a write failed with.
        """
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Lets `wait` return."""
        if self._waiter is not None:
            _settle(self._waiter)

    async def finish(self) -> None:
        """Returns when no message is under way. Raises what a write failed with."""
        while self.busy:
            written = self._loop.create_future()
            self.when_free(partial(_settle, written))
            await written
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """The call is over; what is under way is left to end by itself."""
        if self._timer is not None:
            self._timer.cancel()
        if self.busy:
            self.when_free(self.close)

    def _go_on(self) -> None:
        assert self._rest is not None
        try:
            self._awaited = self._rest.send(None)
        except StopIteration:
            self._awaited = self._rest = None
        except Exception as error:
            self._awaited = self._rest = None
            self._failure = error
            self._interrupt(error)

    def _interrupt(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _look(self) -> None:
        now = self._loop.time()
        since = self.since
        if since is not None and now - since >= self._stall_s:
            self._interrupt(SlowConsumer("a message waits for a client that does not read"))
            since = now
        self._timer = self._loop.call_at((since or now) + self._stall_s, self._look)


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
