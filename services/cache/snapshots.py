"""Snapshots in pieces: written aside, then named in one step, so that a reader finds a whole one or none."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import NamedTuple

from services.cache.valkey import Away, Valkey

PIECES_A_READ = 16


class Saved(NamedTuple):
    """What a name stands for."""

    key: bytes
    pieces: int


class Snapshots:
    """The newest snapshot of each name."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey

    async def save(self, name: str, ttl_s: int, chunks: AsyncIterator[bytes]) -> int:
        """Keeps the chunks; returns their bytes. Raises Away; a save that does not end leaves nothing."""
        if not self._valkey.reliable:
            raise Away
        client = self._valkey.client
        key = b"hr:p:%b:%b" % (name.encode(), secrets.token_hex(8).encode())
        total = pieces = 0
        saved = False
        try:
            async for chunk in chunks:
                append = client.pipeline(transaction=False).rpush(key, chunk).expire(key, ttl_s)
                await self._valkey.call(append.execute())
                total, pieces = total + len(chunk), pieces + 1
            before = await self._valkey.call(
                client.set(_pointer(name), b"%d:%b" % (pieces, key), ex=ttl_s, get=True)
            )
            saved = True
        finally:
            if not saved and self._valkey.reliable:
                await self._valkey.call(client.unlink(key))
        if before:
            await self._valkey.call(client.unlink(_parse(before).key))
        return total

    async def load(self, name: str) -> AsyncIterator[bytes]:
        """The pieces in order; none when there is no whole snapshot. Raises Away in the middle of a loss."""
        if not self._valkey.reliable:
            return
        client = self._valkey.client
        pointer = await self._valkey.call(client.get(_pointer(name)))
        if not pointer:
            return
        saved = _parse(pointer)
        if await self._valkey.call(client.llen(saved.key)) != saved.pieces:
            return
        for start in range(0, saved.pieces, PIECES_A_READ):
            pieces = await self._valkey.call(client.lrange(saved.key, start, start + PIECES_A_READ - 1))
            for piece in pieces:
                yield piece


def _pointer(name: str) -> bytes:
    return b"hr:s:" + name.encode()


def _parse(pointer: bytes) -> Saved:
    count, _, key = pointer.partition(b":")
    return Saved(key, int(count))
