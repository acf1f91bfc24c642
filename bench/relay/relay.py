"""The baseline, a plain relay with one upstream stream a request: `python -m bench.relay.relay ADDRESS`.

No queue, no policy, no text: what any router has to do to pass tokens on in messages of its own. With
`--tokens 4` four tokens share a message after the first one, which goes at once.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from headrace.v1 import router_pb2, router_pb2_grpc

from bench.relay.stream_worker import Reply, delta, serve
from services.common.transport import Tls, channel


class Relay:
    """Answers `Generate` from the worker at `address`."""

    def __init__(self, address: str, tokens: int) -> None:
        self._worker = router_pb2_grpc.RouterServiceStub(channel(address, Tls()))
        self._tokens = tokens

    async def Generate(self, request: router_pb2.GenerateRequest, _: Any) -> AsyncIterator[Reply]:
        """What the worker says, repacked."""
        ids: list[int] = []
        index = 0
        call = self._worker.Generate(request)
        try:
            async for reply in call:
                ids.extend(reply.delta.token_ids)
                ends = reply.HasField("finished")
                if ids and (ends or index == 0 or len(ids) >= self._tokens):
                    yield delta(index, ids)
                    index += len(ids)
                    ids = []
                if ends:
                    yield Reply(finished=reply.finished)
        finally:
            call.cancel()


async def _serve(address: str, tokens: int) -> None:
    serving = await serve(Relay(address, tokens).Generate)
    await serving.wait_for_termination()


def main() -> None:
    """Serve until ended."""
    flags = argparse.ArgumentParser(description="Plain relay with one upstream stream a request.")
    flags.add_argument("address", help="of the worker")
    flags.add_argument("--tokens", type=int, default=1, help="a message")
    given = flags.parse_args()
    uvloop.run(_serve(given.address, given.tokens))


if __name__ == "__main__":
    main()
