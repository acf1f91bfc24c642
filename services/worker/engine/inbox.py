"""Commands into the engine."""

from __future__ import annotations

import select
from collections.abc import Iterator
from multiprocessing.connection import Connection

from services.worker.engine.report import Commands
from services.worker.engine.wire import unpacked


class Inbox:
    """The receiving half of the engine's pipe.

    It polls by itself: `Connection.poll` makes a selector each time, which costs ten times as much.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)

    def take(self, wait_s: float | None) -> Iterator[Commands]:
        """All that is there, or the next that comes within `wait_s`, None: whenever it comes.

        Raises EOFError or OSError when the other side is gone.
        """
        while self._poll.poll(None if wait_s is None else 1e3 * wait_s):
            commands = unpacked(self._connection.recv_bytes())
            assert isinstance(commands, Commands), "nothing else is sent to an engine"
            yield commands
            wait_s = 0.0
