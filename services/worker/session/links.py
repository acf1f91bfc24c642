"""Which routers a worker is attached to: those it was told of, and their siblings, at most four."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from hashlib import blake2b

from headrace.v1 import session_pb2

from services.common import logs
from services.common.lifecycle import Tasks
from services.worker.session.link import Link

MOST_ROUTERS = 4
Told = Callable[[Link, session_pb2.Welcome | None], None]
log = logs.get(__name__)


def choose(worker_id: str, siblings: Iterable[str]) -> set[str]:
    """All of up to four, beyond that four by rendezvous hash: few move when a router comes or goes."""
    return set(sorted(set(siblings), key=lambda address: _weight(worker_id, address))[-MOST_ROUTERS:])


def _weight(worker_id: str, address: str) -> bytes:
    return blake2b(f"{worker_id}\0{address}".encode(), digest_size=16).digest()


class Links:
    """The links of one worker. `changed` is set whenever a session opens or ends."""

    def __init__(
        self,
        worker_id: str,
        configured: Iterable[str],
        dial: Callable[[str, Told], Link],
        tasks: Tasks,
    ) -> None:
        self.changed = asyncio.Event()
        self._worker_id = worker_id
        self._configured = tuple(dict.fromkeys(configured))
        self._dial = dial
        self._tasks = tasks
        self._links: dict[str, Link] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._other_names: set[str] = set()  # of routers that another link reached
        self._leaving = False

    def start(self) -> None:
        """Dials the configured routers."""
        for address in self._configured:
            self._add(address)

    @property
    def open(self) -> int:
        """Sessions that are open."""
        return sum(link.session is not None for link in self._links.values())

    def leave(self) -> None:
        """Ends all sessions, each once its router knows all."""
        self._leaving = True
        for link in self._links.values():
            link.leave()

    async def gone(self, timeout_s: float) -> None:
        """Waits until all links have ended, at most `timeout_s`."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=timeout_s)

    def _told(self, link: Link, welcome: session_pb2.Welcome | None) -> None:
        self.changed.set()
        if welcome is not None:
            self._welcomed(link, welcome)

    def _welcomed(self, link: Link, welcome: session_pb2.Welcome) -> None:
        self._merge_names(link)
        if welcome.siblings and not self._leaving:
            self._follow(choose(self._worker_id, welcome.siblings))

    def _merge_names(self, link: Link) -> None:
        """A router that was reached under two addresses keeps the session that it opened last."""
        for other in list(self._links.values()):
            if other is not link and link.router_id and other.router_id == link.router_id:
                log.info("same_router", router_id=link.router_id, kept=link.address, left=other.address)
                self._other_names.add(other.address)
                self._remove(other)

    def _follow(self, chosen: set[str]) -> None:
        for address in chosen - self._links.keys() - self._other_names:
            self._add(address)
        reached = any(link.session for link in self._links.values() if link.address in chosen)
        for link in list(self._links.values()):
            surplus = len(self._links) > MOST_ROUTERS and reached
            gone = link.address not in self._configured and link.session is None
            if link.address not in chosen and (surplus or gone):
                self._remove(link)

    def _add(self, address: str) -> None:
        link = self._dial(address, self._told)
        self._links[address] = link
        self._running[address] = self._tasks.spawn(link.run(), f"link {address}")

    def _remove(self, link: Link) -> None:
        del self._links[link.address], self._running[link.address]
        link.leave()
