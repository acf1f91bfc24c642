"""Looks for a request at all workers, for a client whose stream broke off: whoever had it submitted there.

A worker that has it tells all that it knows; nothing changes hands by that. Several may have it, where it was
moved and the earlier worker has not heard of that: the latest attempt is the one that its client saw last.

    find ──▶ Claim to every worker ──▶ Claimed, in pieces ──▶ all have answered? the best, or nothing
                     ▲ also to those that join meanwhile

"Nothing" is only said when every worker that could have it has had the time to attach: right after the start
of a router, or after a worker was lost, it waits for them. Where nothing has arrived there is no need: the
client can send it all again. A stranger's request takes as long as none at all.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable

from headrace.v1 import session_pb2

from services.common import errors, logs
from services.router.sessions.found import Found, Gathering, Nonsense
from services.router.sessions.session import Session

log = logs.get(__name__)


class _Search:
    """One request that is looked for."""

    def __init__(self, claim: session_pb2.Claim) -> None:
        self.claim = claim
        self.changed = asyncio.Event()
        self.found: list[Found] = []
        self.open: dict[Session, Gathering] = {}
        self.asked_s = 0.0

    def ask(self, session: Session, now: float) -> None:
        self.open[session] = Gathering(session)
        self.asked_s = now
        session.claim(self.claim)

    def answered(self, session: Session, piece: session_pb2.Claimed) -> None:
        gathering = self.open.get(session)
        if gathering is None:
            raise Nonsense
        if gathering.add(piece):
            del self.open[session]
            if gathering.found is not None:
                self.found.append(gathering.found)
            self.changed.set()

    def left(self, session: Session) -> None:
        if self.open.pop(session, None) is not None:
            self.changed.set()


class Adoption:
    """Searches of this router process.

    Args:
        workers: all sessions that are open.
        settle_s: after the start, and after a worker was lost, how long workers have to attach.
        answer_s: how long one that is there may take to answer; as long as it may be silent and not be lost.
    """

    def __init__(self, workers: Callable[[], Iterable[Session]], settle_s: float, answer_s: float) -> None:
        self._workers = workers
        self._settle_s = settle_s
        self._answer_s = answer_s
        self._settled_s = time.monotonic() + settle_s
        self._searches: dict[bytes, _Search] = {}
        self._unwanted: Counter[tuple[Session, bytes]] = Counter()
        """How many answers are still to come, ahead of others, to claims of searches that were given up."""

    async def find(self, claim_key: bytes, next_index: int) -> Found | None:
        """The request of a key with at least `next_index` output ids; None when no worker has it.

        Raises:
            AlreadyExists: another call looks for it.
        """
        if claim_key in self._searches:
            raise errors.AlreadyExists("another call takes this stream up", reason="REQUEST_ID_IN_USE")
        search = _Search(session_pb2.Claim(claim_key=claim_key, next_index=next_index))
        self._searches[claim_key] = search
        try:
            return await self._searched(search)
        finally:
            del self._searches[claim_key]
            self._unwanted.update((session, claim_key) for session in search.open)

    def answered(self, session: Session, piece: session_pb2.Claimed) -> None:
        """A worker says something of a claim. Late answers are dropped, nonsense is counted."""
        search = self._searches.get(piece.claim_key)
        if self._is_unwanted(session, piece) or search is None:
            return
        try:
            search.answered(session, piece)
        except Nonsense:
            search.left(session)
            session.misbehaved("claimed")

    def joined(self, session: Session) -> None:
        """A worker is there: what is looked for may be there, too."""
        for search in self._searches.values():
            search.ask(session, time.monotonic())

    def parted(self, session: Session) -> None:
        """A worker is gone; it may come back."""
        self._settled_s = max(self._settled_s, time.monotonic() + self._settle_s)
        for each in [each for each in self._unwanted if each[0] is session]:
            del self._unwanted[each]
        for search in self._searches.values():
            search.left(session)

    def _is_unwanted(self, session: Session, piece: session_pb2.Claimed) -> bool:
        """Whether it answers an earlier claim of that key: a worker answers all, in their order."""
        asked = session, piece.claim_key
        if asked not in self._unwanted:
            return False
        if piece.last:
            self._unwanted[asked] -= 1
            if not self._unwanted[asked]:
                del self._unwanted[asked]
        return True

    async def _searched(self, search: _Search) -> Found | None:
        for session in self._workers():
            search.ask(session, time.monotonic())
        while True:
            now = time.monotonic()
            answers_due_s = search.asked_s + self._answer_s if search.open else now
            if now >= answers_due_s:
                best = _best(search.found, search.claim.next_index)
                if best is not None or now >= self._settled_s or not search.claim.next_index:
                    return best
            until_s = answers_due_s if now < answers_due_s else self._settled_s
            await _changed(search.changed, until_s - now)


def _best(found: Iterable[Found], next_index: int) -> Found | None:
    """The latest attempt; what has less output than its client is not it."""
    able = [each for each in found if len(each.output) >= next_index]
    return max(able, key=lambda each: (each.attempt, len(each.output)), default=None)


async def _changed(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
    finally:
        event.clear()
