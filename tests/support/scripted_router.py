"""A RouterService that answers as a test scripts it, on loopback, with no mesh behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from headrace.v1 import router_pb2, router_pb2_grpc, types_pb2

from services.common import errors

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Events: TypeAlias = AsyncIterator[router_pb2.GenerateResponse]
Script: TypeAlias = Callable[[router_pb2.GenerateRequest, Context], Events]


def delta(index: int, *words: str) -> router_pb2.GenerateResponse:
    """Words as tokens from `index`; a token's id is its index."""
    ids = list(range(index, index + len(words)))
    return router_pb2.GenerateResponse(
        delta=router_pb2.Delta(index=index, text="".join(words), token_ids=ids)
    )


def finished(output_tokens: int = 0, **fields: Any) -> router_pb2.GenerateResponse:
    """The end."""
    usage = types_pb2.Usage(prompt_tokens=3, output_tokens=output_tokens)
    fields.setdefault("finish_reason", types_pb2.FINISH_REASON_STOP)
    return router_pb2.GenerateResponse(finished=router_pb2.Finished(usage=usage, **fields))


async def words(*texts: str) -> AsyncIterator[router_pb2.GenerateResponse]:
    """An answer of one token a message."""
    for index, text in enumerate(texts):
        yield delta(index, text)
    yield finished(len(texts))


class ScriptedRouter(router_pb2_grpc.RouterServiceServicer):
    """Answers the n-th Generate by the n-th script, the last one again and again; keeps what was asked."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.requests: list[router_pb2.GenerateRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0

    async def Generate(
        self, request: router_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[router_pb2.GenerateResponse]:
        script = self._next(request, context)
        try:
            async for event in script(request, context):
                yield event
        except errors.HeadraceError as error:
            await errors.abort(context, error)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def GenerateUnary(
        self, request: router_pb2.GenerateRequest, context: Context
    ) -> router_pb2.Finished:
        whole = router_pb2.Finished()
        async for event in self.Generate(request, context):
            if event.HasField("finished"):
                text, ids = whole.text, list(whole.token_ids)
                whole.CopyFrom(event.finished)
                whole.text, whole.token_ids[:] = text, ids
            else:
                whole.text += event.delta.text
                whole.token_ids.extend(event.delta.token_ids)
        return whole

    async def ListModels(
        self, request: router_pb2.ListModelsRequest, context: Context
    ) -> router_pb2.ListModelsResponse:
        model = router_pb2.Model(name="scripted", context_length=2048, vocab_size=100, workers=1, chat=True)
        return router_pb2.ListModelsResponse(models=[model])

    async def CountTokens(
        self, request: router_pb2.CountTokensRequest, context: Context
    ) -> router_pb2.CountTokensResponse:
        return router_pb2.CountTokensResponse(tokens=len(request.text.split()), model="scripted")

    def _next(self, request: router_pb2.GenerateRequest, context: Context) -> Script:
        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        return script


@asynccontextmanager
async def serving(router: ScriptedRouter) -> AsyncIterator[str]:
    """Runs the router on a free port; yields its address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    router_pb2_grpc.add_RouterServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
