"""Calls of two tokenizer services of which one is away: the other serves."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from headrace.v1 import tokenizer_pb2

from services.common.members import MeshSecret
from services.common.transport import Tls
from services.router.tokenizers import TokenizerPool
from tests.support.tokenizer_server import TokenizerServer

ITEM = tokenizer_pb2.EncodeItem(text="water")
MESH = MeshSecret(secrets.token_bytes(32))
NOBODY = "127.0.0.1:1"


@asynccontextmanager
async def pool(beside: str) -> AsyncIterator[TokenizerPool]:
    """A service that is there, and an address of another."""
    there = await TokenizerServer(MESH).start()
    found = TokenizerPool([beside, there.address], Tls(), MESH)
    try:
        yield found
    finally:
        await found.close()
        await there.stop()


async def encoded(pool: TokenizerPool) -> int:
    reply = await pool.encode(tokenizer_pb2.EncodeRequest(model="tiny", items=[ITEM]), 20.0)
    return len(reply.items)


@pytest.mark.parametrize("count", [11, 12])  # whose turn it is next depends on how many there were
async def test_calls_at_one_time_all_find_the_service_that_is_there(count: int) -> None:
    async with pool(NOBODY) as calls:
        assert await asyncio.gather(*(encoded(calls) for _ in range(count))) == [1] * count


async def test_nobody_waits_for_a_service_that_takes_connections_and_says_nothing_any_more() -> None:
    lost = await TokenizerServer(MESH).start()
    host, _, port = lost.address.rpartition(":")
    async with pool(lost.address) as calls:
        while not lost.encoded:
            await encoded(calls)
        await lost.stop()
        with socket.create_server((host, int(port))):
            began_s = time.monotonic()
            for _ in range(6):
                await encoded(calls)
            assert time.monotonic() - began_s < 1.0
