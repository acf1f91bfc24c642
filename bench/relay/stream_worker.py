"""The baseline's worker: one stream a request, one message a token. `python -m bench.relay.stream_worker`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import uvloop
from headrace.v1 import router_pb2, types_pb2

from bench.relay.decoder import Text, options, ready, steps
from bench.relay.processes import LOOPBACK
from services.common.transport import server

Reply = router_pb2.GenerateResponse
Generate = Callable[[router_pb2.GenerateRequest, Any], AsyncIterator[Reply]]
SERVICE = router_pb2.DESCRIPTOR.services_by_name["RouterService"]


class Sequence:
    """One running request."""

    def __init__(self, tokens: int) -> None:
        self.index = 0
        self.tokens = tokens
        self.replies: asyncio.Queue[Reply | None] = asyncio.Queue()


class StreamWorker:
    """Answers `Generate` of RouterService, so that the same client and relay speak to it."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._running: set[Sequence] = set()

    async def Generate(self, request: router_pb2.GenerateRequest, _: Any) -> AsyncIterator[Reply]:
        """One Delta a step, then Finished."""
        sequence = Sequence(request.max_tokens)
        self._running.add(sequence)
        try:
            while (reply := await sequence.replies.get()) is not None:
                yield reply
            yield finished(request)
        finally:
            self._running.discard(sequence)

    def step(self) -> None:
        """The next id of every sequence."""
        for each in list(self._running):
            each.replies.put_nowait(delta(each.index, [self._text.at(each.index)]))
            each.index += 1
            if each.index == each.tokens:
                each.replies.put_nowait(None)
                self._running.discard(each)


def delta(index: int, ids: list[int]) -> Reply:
    """Ids from an output index on."""
    return Reply(delta=router_pb2.Delta(index=index, token_ids=ids))


def finished(request: router_pb2.GenerateRequest) -> Reply:
    """The end."""
    return Reply(
        finished=router_pb2.Finished(
            finish_reason=types_pb2.FINISH_REASON_LENGTH,
            usage=types_pb2.Usage(output_tokens=request.max_tokens),
        )
    )


async def serve(generate: Generate) -> grpc.aio.Server:
    """Opens a server with this method alone, and tells its port; it lives as long as it is held."""
    handler = grpc.unary_stream_rpc_method_handler(
        generate,
        router_pb2.GenerateRequest.FromString,
        Reply.SerializeToString,
    )
    serving = server()
    serving.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, {"Generate": handler}),)
    )
    port = serving.add_insecure_port(f"{LOOPBACK}:0")
    await serving.start()
    ready(port)
    return serving


async def _serve(text: Text, step_s: float) -> None:
    worker = StreamWorker(text)
    serving = await serve(worker.Generate)
    try:
        await steps(step_s, worker.step)
    finally:
        await serving.stop(None)


def main() -> None:
    """Serve until ended."""
    given = options("Mock worker with one stream a request.").parse_args()
    uvloop.run(_serve(Text.read(given.ids), given.step_s))


if __name__ == "__main__":
    main()
