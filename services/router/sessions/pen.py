"""Writes one session's frames: what is put into its outbox in a turn of the loop leaves at the turn's end.

While a frame is under way further commands gather, and leave when it is written. No task is woken for either.
"""

from __future__ import annotations

import asyncio

from services.common.replies import Replies
from services.router.sessions.session import Session


class Pen:
    """Of one session, from its Welcome to its end."""

    def __init__(self, session: Session, replies: Replies) -> None:
        self._session = session
        self._replies = replies
        self._loop = asyncio.get_running_loop()
        self._called = False

    async def write(self) -> None:
        """Returns when the session is over. Raises what a write failed with."""
        self._session.outbox.on_news = self._news
        self._news()
        while not self._session.closed:
            await self._replies.wait()

    def _news(self) -> None:
        if self._session.closed:
            self._replies.wake()
        elif not self._called:
            self._called = True
            self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        session, replies = self._session, self._replies
        self._called = False
        while not replies.busy:
            over = session.closed or replies.failed
            if over or (frame := session.outbox.take()) is None:
                return
            replies.begin(frame)
        self._called = True
        replies.when_free(self._leave)
