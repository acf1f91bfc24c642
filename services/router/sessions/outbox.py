"""Commands for one worker: all of one event-loop turn in one frame, one frame being written at a time.

While a frame is being written, further commands gather and leave with the next one. Frames keep to 64 KiB;
what does not fit waits for the frame after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from headrace.v1 import session_pb2

from services.router.sessions.ledger import Booking

FRAME_BYTES = 60 << 10
Command = (
    session_pb2.Submit | session_pb2.PromptPiece | session_pb2.Cancel | session_pb2.Claim | session_pb2.Adopt
)


class _Entry(NamedTuple):
    command: Command
    booking: Booking | None


class Outbox:
    """What waits to be written. `number` is that of the last frame that left."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.acknowledge = 0
        """Highest worker frame handled; told along with any frame."""
        self.acknowledged = 0
        """The highest that was told."""
        self._commands: deque[_Entry] = deque()
        self._extra = session_pb2.RouterFrame()
        self._urgent = False
        self.on_news: Callable[[], None] = lambda: None
        """Called when there is something to write, and at the end."""

    def put(self, commands: Sequence[Command], booking: Booking | None = None) -> None:
        """Adds commands; the booking is numbered by the frame that the last of them leaves with."""
        self._commands.extend(_Entry(each, None) for each in commands[:-1])
        self._commands.append(_Entry(commands[-1], booking))
        self.on_news()

    def demand(self, demand: session_pb2.Demand, *, urgent: bool) -> None:
        """Tells what waits: at once, or with the next frame."""
        self._extra.demand.CopyFrom(demand)
        if urgent:
            self.wake()

    def want_snapshot(self) -> None:
        """Asks for the whole content of the worker's KV cache."""
        self._extra.kv_snapshot_wanted = True
        self.wake()

    def drain(self, grace_ms: int) -> None:
        """Asks the worker to leave."""
        self._extra.drain.grace_ms = grace_ms
        self.wake()

    def wake(self) -> None:
        """Lets a frame leave even without commands."""
        self._urgent = True
        self.on_news()

    def close(self) -> None:
        """Tells the writer that it is over."""
        self.on_news()

    def take(self) -> session_pb2.RouterFrame | None:
        """The next frame; None when nothing has to be said."""
        if not (self._commands or self._urgent):
            return None
        self.number += 1
        frame, self._extra, self._urgent = self._extra, session_pb2.RouterFrame(), False
        frame.number = self.number
        self.acknowledged = frame.acknowledged_frame = self.acknowledge
        self._fill(frame)
        return frame

    def _fill(self, frame: session_pb2.RouterFrame) -> None:
        size = 0
        while self._commands:
            command, booking = self._commands[0]
            size += command.ByteSize()
            if size > FRAME_BYTES and command.ByteSize() < size:
                return
            self._commands.popleft()
            _append(frame, command)
            if booking is not None:
                booking.number = self.number


def _append(frame: session_pb2.RouterFrame, command: Command) -> None:
    if isinstance(command, session_pb2.Submit):
        frame.submits.append(command)
    elif isinstance(command, session_pb2.Cancel):
        frame.cancels.append(command)
    elif isinstance(command, session_pb2.PromptPiece):
        frame.prompt_pieces.append(command)
    elif isinstance(command, session_pb2.Claim):
        frame.claims.append(command)
    else:
        frame.adoptions.append(command)
