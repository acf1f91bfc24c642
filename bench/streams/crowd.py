"""Clients that only read, as a process that can be killed: `python -m bench.streams.crowd ADDRESS`.

Says `ready 0` when every one of them has had its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from bench.relay.clients import request
from bench.relay.decoder import ready
from bench.streams.load import stubs

if TYPE_CHECKING:
    from headrace.v1.router_pb2_grpc import RouterServiceAsyncStub

TIMEOUT_S = 600.0
_PROMPT_TOKENS = 96


async def crowd(address: str, prompt: Sequence[int], streams: int, tokens: int, connections: int) -> None:
    """All of them, until they have ended."""
    begun = asyncio.Semaphore(0)
    async with stubs([address], connections) as found, asyncio.TaskGroup() as group:
        for number in range(streams):
            stub = found[number % connections]
            group.create_task(_client(stub, prompt, tokens, begun))
        for _ in range(streams):
            await begun.acquire()
        ready(0)


async def _client(
    stub: RouterServiceAsyncStub, prompt: Sequence[int], tokens: int, begun: asyncio.Semaphore
) -> None:
    first = True
    call = stub.Generate(request(prompt, tokens), timeout=TIMEOUT_S)
    try:
        async for _ in call:
            if first:
                begun.release()
                first = False
    finally:
        call.cancel()


def main() -> None:
    """Read until killed."""
    flags = argparse.ArgumentParser(description="Clients that only read.")
    flags.add_argument("address", help="of a router")
    flags.add_argument("--ids", type=Path, required=True, help="file of ids that prompts are made of")
    flags.add_argument("--streams", type=int, default=1000)
    flags.add_argument("--tokens", type=int, default=4000, help="of each answer")
    flags.add_argument("--connections", type=int, default=20)
    given = flags.parse_args()
    prompt = json.loads(given.ids.read_text())[:_PROMPT_TOKENS]
    uvloop.run(crowd(given.address, prompt, given.streams, given.tokens, given.connections))


if __name__ == "__main__":
    main()
