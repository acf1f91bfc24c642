"""One process of the pool as the pool sees it: ask it, notice its death, kill it."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import cast

from services.tokenizer.text.encoder import EncoderStatistics
from services.tokenizer.text.errors import CannotStart
from services.tokenizer.text.items import Item
from services.tokenizer.text.wire import LENGTH, Refusal, Reply, Request, pack_request, unpack_reply

_COMMAND = (sys.executable, "-m", "services.tokenizer.text.process")
_MAX_FRAME_BYTES = 1 << 30
_BACKSTOP_S = 5.0  # the process outlives its deadline by this where no pool is left to kill it


class ProcessDied(Exception):
    """The process ended, or said what no process of ours says, before it had answered."""


class SupervisedProcess:
    """Use `start`. Answers one request at a time."""

    statistics: EncoderStatistics
    """As it was when the process had loaded."""

    def __init__(self, process: subprocess.Popen[bytes], channel: _Channel) -> None:
        self._process = process
        self._channel = channel

    @classmethod
    async def start(cls, spec_frame: bytes, timeout_s: float) -> SupervisedProcess:
        """Start a process and wait until it has loaded what `spec_frame` says.

        The process is executed anew and never forked from this one, whose gRPC threads it would copy.

        Raises:
            CannotStart: it cannot load the tokenizer, died, or was not ready in time.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = _execute(theirs)
        _, channel = await asyncio.get_running_loop().create_unix_connection(_Channel, sock=ours)
        started = cls(process, channel)
        try:
            async with asyncio.timeout(timeout_s):
                started.statistics = _statistics(await channel.ask(spec_frame))
        except (ProcessDied, TimeoutError) as error:
            started.kill()
            raise CannotStart(f"a tokenizer process did not start: {error or 'timeout'}") from error
        except BaseException:
            started.kill()
            raise
        return started

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def died(self) -> asyncio.Future[None]:
        """Done when the process has closed its end."""
        return self._channel.closed

    async def encode(self, items: Sequence[Item], timeout_s: float) -> Reply:
        """Have `items` encoded. When this is cancelled the process is of no more use: kill it.

        Raises:
            ProcessDied: it ended before it answered.
        """
        request = Request(tuple(items), timeout_s + _BACKSTOP_S)
        reply = await self._channel.ask(pack_request(request))
        if isinstance(reply, Refusal) or len(reply.outcomes) != len(request.items):
            raise ProcessDied("a strange answer")
        return reply

    def kill(self) -> None:
        """End it at once (SIGKILL), whatever it does."""
        self._process.kill()
        self._channel.close()

    def is_reaped(self) -> bool:
        """Whether the kernel has let go of it; a killed process takes a moment."""
        return self._process.poll() is not None


class _Channel(asyncio.Protocol):
    """Frames over the socket pair: one question, one answer."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received = bytearray()
        self._answer: asyncio.Future[Reply | Refusal] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # NOTE: uvloop's transports are no subclass of asyncio.Transport, so this cannot be an assertion.
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, frame: bytes) -> Reply | Refusal:
        if self._transport is None or self.closed.done():
            raise ProcessDied("it is gone")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(frame)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) < LENGTH.size:
            return
        (size,) = LENGTH.unpack_from(self._received)
        if size > _MAX_FRAME_BYTES or len(self._received) > LENGTH.size + size:
            self.close()
        elif len(self._received) == LENGTH.size + size:
            body = bytes(self._received[LENGTH.size :])
            self._received.clear()
            self._settle(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ProcessDied("it ended"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _settle(self, body: bytes) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        try:
            answer.set_result(unpack_reply(body))
        except (ValueError, KeyError, TypeError, struct.error) as error:
            answer.set_exception(ProcessDied(f"a strange answer: {type(error).__name__}"))


def _statistics(ready: Reply | Refusal) -> EncoderStatistics:
    if isinstance(ready, Refusal):
        raise CannotStart(ready.reason)
    return ready.statistics


def _execute(theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_COMMAND, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,
    )
